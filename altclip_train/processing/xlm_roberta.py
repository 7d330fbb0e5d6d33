"""The student's tokenizer: XLM-R's Unigram pieces. Reference: XLM-R (arXiv:1911.02116) with fairseq's id offset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from altclip_train.processing.tokenizer import TextTokenizer
from altclip_train.processing.tokenizer_files import TokenizerSettings, missing
from altclip_train.processing.unigram import UnigramVocabulary

SENTENCEPIECE_FILE = "sentencepiece.bpe.model"


class XLMRTokenizer(TextTokenizer):
    """XLM-R's tokenizer: Unigram pieces of a SentencePiece model, ids shifted by fairseq's rule.

    ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, then SentencePiece id + 1, ``<mask>`` last.
    """

    SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

    def __init__(self, model_file: str | Path) -> None:
        """Raises FileNotFoundError without the file, ValueError when it is no XLM-R SentencePiece model."""
        path = Path(model_file)
        if not path.is_file():
            raise FileNotFoundError(f"no SentencePiece model {path}: give the path of a {SENTENCEPIECE_FILE}")
        self._build(UnigramVocabulary.from_sentencepiece(path))

    def _build(self, vocabulary: UnigramVocabulary) -> None:
        self.vocabulary = vocabulary
        tokenizer = Tokenizer(models.Unigram(vocabulary.pieces, unk_id=3, byte_fallback=False))
        if vocabulary.character_map:
            tokenizer.normalizer = normalizers.Precompiled(vocabulary.character_map)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            ]
        )
        tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
        special = [AddedToken(token, special=True, normalized=False) for token in self.SPECIAL_TOKENS]
        self._adopt(tokenizer, special, bos="<s>", eos="</s>", pad="<pad>")
        self._normalizer, self._model = tokenizer.normalizer, tokenizer.model
        self.fingerprint = vocabulary.digest

    def _word_ids(self, word: str) -> Sequence[int]:
        """As the library computes them, but without its search for special tokens and its positions: half the time."""
        normalized = word if self._normalizer is None else self._normalizer.normalize_str(word)
        if "<" in word or "▁" in normalized or normalized.split() != [normalized]:
            return super()._word_ids(word)  # it may be, or become, more than one piece
        return [token.id for token in self._model.tokenize("▁" + normalized)]

    def __getstate__(self) -> tuple[UnigramVocabulary, int]:
        # The library's own pickle is JSON, slow and large for 250,000 pieces.
        return self.vocabulary, self.model_max_length

    def __setstate__(self, state: tuple[UnigramVocabulary, int]) -> None:
        vocabulary, model_max_length = state
        self._build(vocabulary)
        self.model_max_length = model_max_length

    @classmethod
    def from_vocabulary(cls, vocabulary: UnigramVocabulary) -> Self:
        """The tokenizer of a vocabulary in memory."""
        tokenizer = cls.__new__(cls)
        tokenizer._build(vocabulary)
        return tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read sentencepiece.bpe.model, else tokenizer.json, and model_max_length where the directory says it.

        Raises FileNotFoundError saying what the directory holds, ValueError for another tokenizer's file.
        """
        folder = Path(directory)
        if (folder / SENTENCEPIECE_FILE).is_file():
            tokenizer = cls(folder / SENTENCEPIECE_FILE)
        elif (folder / "tokenizer.json").is_file():
            tokenizer = cls.from_vocabulary(UnigramVocabulary.from_json(folder / "tokenizer.json"))
        else:
            raise missing(folder, f"{SENTENCEPIECE_FILE} or tokenizer.json", "XLM-R tokenizer")
        tokenizer.model_max_length = TokenizerSettings.from_pretrained(folder).model_max_length
        tokenizer.name_or_path = str(directory)
        return tokenizer

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if it came from one, sentencepiece.bpe.model."""
        settings = {
            "tokenizer_class": "XLMRobertaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        }
        folder = self._save_json(directory, settings)
        if self.vocabulary.model_data is not None:
            (folder / SENTENCEPIECE_FILE).write_bytes(self.vocabulary.model_data)

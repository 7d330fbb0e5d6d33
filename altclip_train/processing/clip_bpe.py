"""The CLIP teacher's tokenizer: lower-cased byte-level BPE. Reference: CLIP (arXiv:2103.00020)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from altclip_train.processing.clip_files import END_OF_TEXT, START_OF_TEXT, read_clip_vocabulary
from altclip_train.processing.tokenizer import TextTokenizer
from altclip_train.processing.tokenizer_files import TokenizerSettings, write_json

_WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


class CLIPTokenizer(TextTokenizer):
    """CLIP's tokenizer: lower-cased, byte-level BPE with ``</w>`` at the end of each word."""

    SPECIAL_TOKENS = (START_OF_TEXT, END_OF_TEXT)

    def __init__(
        self, vocab: dict[str, int], merges: Sequence[tuple[str, str]], *, pad_token: str = END_OF_TEXT
    ) -> None:
        """Raises ValueError when the vocabulary lacks ``pad_token`` or one of the two special tokens."""
        self._build(dict(vocab), [(left, right) for left, right in merges], pad_token)

    def _build(self, vocab: dict[str, int], merges: list[tuple[str, str]], pad_token: str) -> None:
        absent = [token for token in (*self.SPECIAL_TOKENS, pad_token) if token not in vocab]
        if absent:
            raise ValueError(f"CLIP vocabulary of {len(vocab)} entries lacks {absent}: not a CLIP vocabulary")
        self._vocab, self._merges, self._pad_token = vocab, merges, pad_token
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END_OF_TEXT))
        tokenizer.normalizer = clip_normalizer()
        tokenizer.pre_tokenizer = clip_pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        # normalized: found after lower-casing, as in OpenAI's tokenizer and CLIP's published directories.
        special = [AddedToken(token, special=True, normalized=True) for token in self.SPECIAL_TOKENS]
        if pad_token not in self.SPECIAL_TOKENS:  # "!" in some directories: never part of a word then
            special.append(AddedToken(pad_token, special=True, normalized=False))
        self._adopt(tokenizer, special, bos=START_OF_TEXT, eos=END_OF_TEXT, pad=pad_token)
        other_pad = [] if pad_token == END_OF_TEXT else [pad_token]
        vocabulary = json.dumps([vocab, merges, *other_pad], ensure_ascii=False, sort_keys=True)
        self.fingerprint = hashlib.sha256(vocabulary.encode()).hexdigest()

    def __getstate__(self) -> tuple[dict[str, int], list[tuple[str, str]], str, int]:
        return self._vocab, self._merges, self._pad_token, self.model_max_length

    def __setstate__(self, state: tuple[dict[str, int], list[tuple[str, str]], str, int]) -> None:
        vocab, merges, pad_token, model_max_length = state
        self._build(vocab, merges, pad_token)
        self.model_max_length = model_max_length

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return super()._decode(ids, skip_special_tokens).replace("</w>", " ").strip()

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read vocab.json + merges.txt, else tokenizer.json, else OpenAI's bpe_simple_vocab_16e6.txt.gz.

        Raises FileNotFoundError saying what the directory holds instead, ValueError for a damaged file.
        """
        vocab, merges = read_clip_vocabulary(Path(directory))
        settings = TokenizerSettings.from_pretrained(directory)
        tokenizer = cls(vocab, merges, pad_token=settings.pad_token or END_OF_TEXT)
        tokenizer.model_max_length = settings.model_max_length
        tokenizer.name_or_path = str(directory)
        return tokenizer

    def save_pretrained(self, directory: str | Path) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": _normalized_token(START_OF_TEXT),
            "eos_token": _normalized_token(END_OF_TEXT),
            "unk_token": _normalized_token(END_OF_TEXT),
            "pad_token": self._pad_token,
        }
        folder = self._save_json(directory, settings)
        write_json(folder / "vocab.json", self._vocab)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self._merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clip_normalizer() -> normalizers.Normalizer:
    """NFC, any white space to one space, lower case."""
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def clip_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """CLIP's words (letters, single digits, runs of other signs), then bytes as printable characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _normalized_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": token, **flags}

"""The student's tokenizer (XLM-R) and the CLIP teacher's (byte-level BPE).

Both encode with the `tokenizers` library, set up as `transformers` sets it up, so that ids are the same on
every string, including the corners where that library and SentencePiece's own normaliser disagree
(half-width katakana with a voicing mark, U+0085, text that looks like a special token).

References: XLM-R (arXiv:1911.02116) with fairseq's id offset; CLIP (arXiv:2103.00020).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from altclip_train.types import PackedTokens

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"

_CLIP_WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")

_UNIGRAM = 1

# Field numbers of sentencepiece_model.proto.
_TRAINER_SPEC, _NORMALIZER_SPEC = 2, 3
_MODEL_TYPE = 3  # of trainer_spec
_CHARACTER_MAP = 2  # of normalizer_spec


class _BatchTokenizer:
    """What both tokenizers share: batch encoding with a begin and an end token, packing, decoding."""

    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    fingerprint: str
    _tokenizer: Tokenizer

    def _adopt(self, tokenizer: Tokenizer, special: list[AddedToken], *, bos: str, eos: str, pad: str) -> None:
        # Loader workers are the parallelism: a thread pool in each of them oversubscribes the machine, and
        # a pool that was started before a fork makes the library complain. The user's own setting wins.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer.add_special_tokens(special)
        self._tokenizer = tokenizer
        self.bos_id, self.eos_id, self.pad_id = (_token_id(tokenizer, token) for token in (bos, eos, pad))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A", eos],
            pair=[bos, "$A", eos, eos, "$B", eos],
            special_tokens=[(bos, self.bos_id), (eos, self.eos_id)],
        )
        self.vocab_size = tokenizer.get_vocab_size()

    def __len__(self) -> int:
        return self.vocab_size

    def encode_batch(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text with begin and end token, cut to ``max_length`` tokens in all.

        The end token survives the cut: text towers pool there. Raises ValueError when ``max_length`` < 2
        and TypeError when ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise TypeError(f"encode_batch takes a list of texts, got one string {texts[:40]!r}: put it in a list")
        if max_length < 2:
            raise ValueError(f"max_length={max_length} leaves no room for the begin and end tokens: use 2 or more")
        kept = max_length - 2
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[self.bos_id, *encoding.ids[:kept], self.eos_id] for encoding in encodings]

    def pack(self, texts: Sequence[str], max_length: int) -> PackedTokens:
        """The B texts laid end to end without padding."""
        return PackedTokens.from_lists(self.encode_batch(texts, max_length))

    def _save_json(self, directory: str | Path, settings: dict[str, Any]) -> Path:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / "tokenizer.json"))
        _write_json(folder / "tokenizer_config.json", settings)
        return folder


@dataclass(frozen=True)
class UnigramVocabulary:
    """Pieces with scores in the order of XLM-R's ids, and the map that normalises characters."""

    pieces: list[tuple[str, float]]
    character_map: bytes
    model_data: bytes | None  # the SentencePiece file, None when read from a tokenizer.json

    @classmethod
    def from_sentencepiece(cls, path: Path) -> UnigramVocabulary:
        """Apply fairseq's id offset to a SentencePiece model. Raises ValueError when it is no XLM-R one."""
        import sentencepiece

        data = path.read_bytes()
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise ValueError(
                f"{path} ({len(data)} bytes) is not a SentencePiece model. A file of about 130 bytes is a "
                "Git LFS pointer: fetch the real one"
            ) from error
        message = dict(_fields(data))
        model_type = dict(_fields(message[_TRAINER_SPEC])).get(_MODEL_TYPE, _UNIGRAM)
        ids = list(range(processor.get_piece_size()))
        pieces = list(zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True))
        first = [piece for piece, _ in pieces[:3]]
        if first != ["<unk>", "<s>", "</s>"] or model_type != _UNIGRAM:
            raise ValueError(
                f"{path} begins with the pieces {first} and has model_type {model_type}; XLM-R's layout is "
                f"['<unk>', '<s>', '</s>'] in a Unigram model (model_type {_UNIGRAM})"
            )
        specials = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        character_map = dict(_fields(message[_NORMALIZER_SPEC])).get(_CHARACTER_MAP, b"")
        return cls([*specials, *pieces[3:], ("<mask>", 0.0)], character_map, data)

    @classmethod
    def from_json(cls, path: Path) -> UnigramVocabulary:
        """Read a tokenizer.json. Raises ValueError when it is not XLM-R's."""
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        pieces = [(piece, score) for piece, score in model["vocab"]] if model.get("type") == "Unigram" else []
        if [piece for piece, _ in (*pieces[:4], *pieces[-1:])] != ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]:
            raise ValueError(
                f"{path} is not XLM-R's: expected a Unigram model of <s>, <pad>, </s>, <unk>, ..., <mask>, "
                f"found a {model.get('type')} model of {len(model['vocab'])} entries"
            )
        normalizer = content["normalizer"] or {}
        steps = normalizer.get("normalizers", [normalizer])
        maps = [step["precompiled_charsmap"] for step in steps if "precompiled_charsmap" in step]
        return cls(pieces, base64.b64decode(maps[0]) if maps else b"", None)

    def digest(self) -> str:
        """SHA-256 in hex, the same whichever file the vocabulary was read from."""
        lines = "\n".join(f"{piece}\t{score!r}" for piece, score in self.pieces)
        return hashlib.sha256(lines.encode() + b"\n" + self.character_map).hexdigest()


class XLMRTokenizer(_BatchTokenizer):
    """XLM-R's tokenizer: Unigram pieces of a SentencePiece model, ids shifted by fairseq's rule.

    ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, then SentencePiece id + 1, ``<mask>`` last.
    """

    SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

    def __init__(self, model_file: str | Path) -> None:
        """Raises FileNotFoundError without the file, ValueError when it is no XLM-R SentencePiece model."""
        path = Path(model_file)
        if not path.is_file():
            raise FileNotFoundError(f"no SentencePiece model {path}: give the path of a sentencepiece.bpe.model")
        self._build(UnigramVocabulary.from_sentencepiece(path))

    def _build(self, vocabulary: UnigramVocabulary) -> None:
        self._vocabulary = vocabulary
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
        self.fingerprint = vocabulary.digest()

    def __getstate__(self) -> UnigramVocabulary:
        return self._vocabulary  # the library's own pickle is JSON, slow and large for 250,000 pieces

    def __setstate__(self, state: UnigramVocabulary) -> None:
        self._build(state)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save_pretrained(self, directory: str | Path, *, model_max_length: int = 77) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if it came from one, sentencepiece.bpe.model."""
        settings = {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": model_max_length,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        }
        folder = self._save_json(directory, settings)
        if self._vocabulary.model_data is not None:
            (folder / "sentencepiece.bpe.model").write_bytes(self._vocabulary.model_data)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> XLMRTokenizer:
        """Read sentencepiece.bpe.model, else tokenizer.json.

        Raises FileNotFoundError saying what the directory holds, ValueError for another tokenizer's file.
        """
        folder = Path(directory)
        if (folder / "sentencepiece.bpe.model").is_file():
            return cls(folder / "sentencepiece.bpe.model")
        if not (folder / "tokenizer.json").is_file():
            raise _missing(folder, "sentencepiece.bpe.model or tokenizer.json", "XLM-R tokenizer")
        tokenizer = cls.__new__(cls)
        tokenizer._build(UnigramVocabulary.from_json(folder / "tokenizer.json"))
        return tokenizer


class CLIPTokenizer(_BatchTokenizer):
    """CLIP's tokenizer: lower-cased, byte-level BPE with ``</w>`` at the end of each word."""

    SPECIAL_TOKENS = (START_OF_TEXT, END_OF_TEXT)

    def __init__(self, vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """Raises ValueError when the vocabulary lacks one of the two special tokens."""
        self._build(dict(vocab), [(left, right) for left, right in merges])

    def _build(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        absent = [token for token in self.SPECIAL_TOKENS if token not in vocab]
        if absent:
            raise ValueError(f"CLIP vocabulary of {len(vocab)} entries lacks {absent}: not a CLIP vocabulary")
        self._vocab, self._merges = vocab, merges
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=END_OF_TEXT))
        tokenizer.normalizer = clip_normalizer()
        tokenizer.pre_tokenizer = clip_pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        # normalized: found after lower-casing, as in OpenAI's tokenizer and CLIP's published directories.
        special = [AddedToken(token, special=True, normalized=True) for token in self.SPECIAL_TOKENS]
        self._adopt(tokenizer, special, bos=START_OF_TEXT, eos=END_OF_TEXT, pad=END_OF_TEXT)
        vocabulary = json.dumps([vocab, merges], ensure_ascii=False, sort_keys=True)
        self.fingerprint = hashlib.sha256(vocabulary.encode()).hexdigest()

    def __getstate__(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        return self._vocab, self._merges

    def __setstate__(self, state: tuple[dict[str, int], list[tuple[str, str]]]) -> None:
        self._build(*state)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without special tokens; words are separated by one space."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).replace("</w>", " ").strip()

    def save_pretrained(self, directory: str | Path, *, model_max_length: int = 77) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": model_max_length,
            "bos_token": _normalized_token(START_OF_TEXT),
            "eos_token": _normalized_token(END_OF_TEXT),
            "unk_token": _normalized_token(END_OF_TEXT),
            "pad_token": END_OF_TEXT,
        }
        folder = self._save_json(directory, settings)
        _write_json(folder / "vocab.json", self._vocab)
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self._merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> CLIPTokenizer:
        """Read vocab.json + merges.txt, else tokenizer.json.

        Raises FileNotFoundError saying what the directory holds instead.
        """
        folder = Path(directory)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
        elif (folder / "tokenizer.json").is_file():
            model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
            if model.get("type", "BPE") != "BPE":
                raise ValueError(
                    f"{folder / 'tokenizer.json'} holds a {model['type']} model, a CLIP tokenizer is BPE: "
                    "point to the CLIP directory"
                )
            vocab, merges = model["vocab"], model["merges"]
        else:
            raise _missing(directory, "vocab.json and merges.txt, or tokenizer.json", "CLIP tokenizer")
        return cls(vocab, [_merge_pair(merge) for merge in merges])


def clip_normalizer() -> normalizers.Normalizer:
    """NFC, any white space to one space, lower case."""
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def clip_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """CLIP's words (letters, single digits, runs of other signs), then bytes as printable characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_CLIP_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def load_tokenizer(directory: str | Path) -> XLMRTokenizer | CLIPTokenizer:
    """The tokenizer whose files lie in ``directory``. Raises FileNotFoundError when there is neither kind."""
    folder = Path(directory)
    if (folder / "sentencepiece.bpe.model").is_file():
        return XLMRTokenizer.from_pretrained(folder)
    if (folder / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kind = XLMRTokenizer if content["model"].get("type") == "Unigram" else CLIPTokenizer
        return kind.from_pretrained(folder)
    wanted = "sentencepiece.bpe.model (XLM-R), vocab.json + merges.txt (CLIP) or tokenizer.json"
    raise _missing(folder, wanted, "tokenizer")


def _normalized_token(token: str) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": token, **flags}


def _merge_pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the vocabulary lacks {token}")
    return token_id


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _missing(directory: str | Path, wanted: str, kind: str) -> FileNotFoundError:
    folder = Path(directory)
    if not folder.is_dir():
        return FileNotFoundError(f"no {kind}: {folder} is not a directory")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
    return FileNotFoundError(
        f"no {kind} in {folder}: expected {wanted}, found {found}. "
        "Copy the tokenizer files of the model there, or point to the directory that has them"
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of each field of a Protocol Buffers message; nested messages stay bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield field, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {position}")
        yield field, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position

"""XLM-R's vocabulary: the pieces of a SentencePiece model in fairseq's order, from either of its two files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from altclip_train.processing.protobuf import fields
from altclip_train.processing.tokenizer_files import read_model

_UNIGRAM = 1

# Field numbers of sentencepiece_model.proto.
_TRAINER_SPEC, _NORMALIZER_SPEC = 2, 3
_MODEL_TYPE = 3  # of trainer_spec
_CHARACTER_MAP = 2  # of normalizer_spec


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
        message = dict(fields(data))
        model_type = dict(fields(message[_TRAINER_SPEC])).get(_MODEL_TYPE, _UNIGRAM)
        ids = list(range(processor.get_piece_size()))
        pieces = list(zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True))
        first = [piece for piece, _ in pieces[:3]]
        if first != ["<unk>", "<s>", "</s>"] or model_type != _UNIGRAM:
            raise ValueError(
                f"{path} begins with the pieces {first} and has model_type {model_type}; XLM-R's layout is "
                f"['<unk>', '<s>', '</s>'] in a Unigram model (model_type {_UNIGRAM})"
            )
        specials = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
        character_map = dict(fields(message[_NORMALIZER_SPEC])).get(_CHARACTER_MAP, b"")
        return cls([*specials, *pieces[3:], ("<mask>", 0.0)], character_map, data)

    @classmethod
    def from_json(cls, path: Path) -> UnigramVocabulary:
        """Read a tokenizer.json of any age. Raises ValueError when it is not XLM-R's."""
        content, kind = read_model(path)
        vocab = content["model"]["vocab"]
        pieces = [(piece, score) for piece, score in vocab] if kind == "Unigram" else []
        if [piece for piece, _ in (*pieces[:4], *pieces[-1:])] != ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]:
            raise ValueError(
                f"{path} is not XLM-R's: expected a Unigram model of <s>, <pad>, </s>, <unk>, ..., <mask>, "
                f"found a {kind} model of {len(vocab)} entries"
            )
        # How words are split is XLM-R's in every such file, though spelled in several ways; only this differs.
        normalizer = content.get("normalizer") or {}
        steps = normalizer.get("normalizers", [normalizer])
        maps = [step["precompiled_charsmap"] for step in steps if "precompiled_charsmap" in step]
        try:
            return cls(pieces, base64.b64decode(maps[0]) if maps else b"", None)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"{path}: precompiled_charsmap is not base64: {error}") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex, the same whichever file the vocabulary was read from; a copy for another process has it."""
        digest = hashlib.sha256()
        for piece, score in self.pieces:
            # Scores are 32-bit in SentencePiece and text of any length in JSON.
            digest.update(piece.encode() + b"\t" + struct.pack("<f", score) + b"\n")
        digest.update(self.character_map)
        return digest.hexdigest()

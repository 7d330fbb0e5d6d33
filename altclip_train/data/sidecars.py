"""A sidecar: the embeddings of one field of a shard in one file, which is mapped to be read and to be filled.

The file is safetensors, of S samples and N rows of width D:
    offsets     I64 (S + 1)          the rows of sample i are offsets[i] to offsets[i + 1]
    embeddings  F16 or F32 (N, D)
    filled      U8 (N)               1 where the row holds a vector
Its metadata are the format, the digest of the shard's index, and the fingerprint of what makes the vectors:
named parts (:mod:`altclip_train.models.fingerprint`), two of which are the field and the dtype.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altclip_train.files import publish_first

FORMAT = "1"
DTYPES = {"float16": "F16", "float32": "F32"}
_NUMPY = {"I64": "<i8", "F16": "<f2", "F32": "<f4", "U8": "|u1"}


class Sidecar:
    """One file, open. Every process that has it open sees what any of them writes."""

    def __init__(self, path: Path, memory: mmap.mmap, arrays: Mapping[str, np.ndarray]) -> None:
        self.path = path
        self.offsets = arrays["offsets"]  # (S + 1,)
        self.embeddings = arrays["embeddings"]  # (N, D)
        self.filled = arrays["filled"]  # (N,)
        self._memory = memory

    @classmethod
    def create(
        cls, path: Path, offsets: np.ndarray, *, width: int, fingerprint: Mapping[str, str], shard_digest: str
    ) -> Sidecar:
        """The sidecar ``path`` without a filled row, open for writing; if there is one by now, that one.

        It has its name from the moment it is whole. Raises OSError when the disk has no room for all rows.
        """
        offsets = np.ascontiguousarray(offsets, dtype="<i8")
        header, size = _header(offsets, width, fingerprint, shard_digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with open(temporary, "xb") as file:
                file.write(header + offsets.tobytes())
                file.flush()
                _reserve(file.fileno(), len(header) + size)
                os.fsync(file.fileno())
            publish_first(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return cls.open(path, fingerprint=fingerprint, shard_digest=shard_digest, writable=True)

    @classmethod
    def open(cls, path: Path, *, fingerprint: Mapping[str, str], shard_digest: str, writable: bool = False) -> Sidecar:
        """Raises FileNotFoundError; ValueError for a damaged file, and for one of other vectors or another shard."""
        with open(path, "r+b" if writable else "rb") as file:
            try:
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                memory = mmap.mmap(file.fileno(), 0, access=access)
                metadata, arrays = _parse(memory)
                found, digest = json.loads(metadata["fingerprint"]), metadata["shard_sha256"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                raise ValueError(
                    f"{path} is damaged, or holds no embeddings of a shard ({reason}): delete it; it is made again"
                ) from error
        if digest != shard_digest:
            raise ValueError(f"{path} belongs to an earlier state of its shard: delete it; it is made again")
        if wrong := differences(found, fingerprint):
            raise ValueError(f"{path} holds other embeddings: {'; '.join(wrong)}. Delete it, or use what made it")
        return cls(path, memory, arrays)

    @property
    def complete(self) -> bool:
        return bool(self.filled.all())

    def missing(self) -> np.ndarray:
        """Numbers of the rows that are not filled."""
        return np.flatnonzero(self.filled == 0)

    def row_number(self, sample: int, entry: int = 0) -> int | None:
        """Row of an entry of a sample; None when the sample has no such row."""
        row, end = int(self.offsets[sample]) + entry, int(self.offsets[sample + 1])
        return row if row < end else None

    def row(self, sample: int, entry: int = 0) -> np.ndarray | None:
        """(D,), a view of the file; None where nothing is cached."""
        row = self.row_number(sample, entry)
        return None if row is None or not self.filled[row] else self.embeddings[row]

    def write(self, rows: Sequence[int] | np.ndarray, vectors: np.ndarray, *, sync: bool = False) -> None:
        """Fill rows with vectors (rows, D). With ``sync`` they are on the disk before they count as filled.

        A killed process needs no ``sync``, a power cut does. Raises ValueError, and writes nothing, for a vector
        that the type cannot hold.
        """
        expected = (len(rows), self.embeddings.shape[1])
        if vectors.shape != expected:
            raise ValueError(f"{self.path}: vectors are {vectors.shape}, expected {expected}")
        limit = np.finfo(self.embeddings.dtype).max
        fits = (np.abs(vectors) <= limit).all(axis=1)  # not so for NaN
        if not fits.all():
            row = rows[int(np.argmin(fits))]
            raise ValueError(
                f"{self.path}: the vector of row {row} is not finite or beyond {limit:g}, the largest "
                f"{self.embeddings.dtype}: look at the weights, or store float32"
            )
        self.embeddings[rows] = vectors
        if sync:
            self._memory.flush()
        self.filled[rows] = 1


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """One phrase for each part in which two fingerprints differ."""
    parts = [part for part in {**expected, **found} if found.get(part) != expected.get(part)]
    return [f"{part} is {_short(found.get(part))}, expected {_short(expected.get(part))}" for part in parts]


def _header(offsets: np.ndarray, width: int, fingerprint: Mapping[str, str], shard_digest: str) -> tuple[bytes, int]:
    """The header of a file, and the bytes of all tensors after it."""
    rows = int(offsets[-1])
    parts = json.dumps(dict(fingerprint), sort_keys=True)
    metadata = {"format": FORMAT, "shard_sha256": shard_digest, "fingerprint": parts}
    metadata["fingerprint_sha256"] = hashlib.sha256(parts.encode()).hexdigest()
    tensors = {
        "offsets": ("I64", [len(offsets)]),
        "embeddings": (DTYPES[fingerprint["dtype"]], [rows, width]),
        "filled": ("U8", [rows]),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + int(np.prod(shape)) * np.dtype(_NUMPY[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor is aligned
    return struct.pack("<Q", len(text)) + text, end


def _parse(memory: mmap.mmap) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a file. Raises ValueError, KeyError or TypeError for a damaged one."""
    start = 8 + int.from_bytes(memory[:8], "little")
    if start > len(memory):
        raise ValueError(f"its header ends at byte {start} of {len(memory)}")
    header = json.loads(memory[8:start])
    metadata = header["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}, expected {FORMAT!r}")
    arrays = {}
    for name in ("offsets", "embeddings", "filled"):
        entry = header[name]
        first = start + entry["data_offsets"][0]
        arrays[name] = np.ndarray(entry["shape"], _NUMPY[entry["dtype"]], memory, first)
    if not arrays["offsets"][-1] == len(arrays["embeddings"]) == len(arrays["filled"]):
        raise ValueError("its tensors do not fit each other")
    return metadata, arrays


def _reserve(descriptor: int, size: int) -> None:
    # A mapped file with holes kills the process by a signal when the disk is full as they are written.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _short(value: str | None) -> str:
    if value is None:
        return "not given"
    return f"{value[:12]}…" if len(value) == 64 and value.isalnum() else value

"""The index of a shard: where each sample's members lie, built by a scan and saved in one small file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from altclip_train.data.scan import Member, TarScan
from altclip_train.data.urls import INDEX_SUFFIX

logger = logging.getLogger(__name__)

INDEX_FORMAT = 1
ARRAYS = ("key_starts", "sample_starts", "member_fields", "member_offsets", "member_sizes")


class ShardState(NamedTuple):
    """What tells one state of a shard from another; None is unknown."""

    size: int | None
    mtime_ns: int | None = None  # of a local shard
    etag: str | None = None  # of a remote one, or what its file system has in place of one

    @classmethod
    def of(cls, path: Path) -> ShardState:
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns)


@dataclass(kw_only=True, eq=False)
class ShardIndex:
    """Keys and members of the S samples of one shard; M members in all."""

    state: ShardState  # of the shard that it describes
    fields: list[str]  # distinct field names
    problems: list[str]  # what the scan found wrong
    key_starts: np.ndarray  # (S + 1,) int64 into key_bytes
    sample_starts: np.ndarray  # (S + 1,) int64 into the member arrays
    member_fields: np.ndarray  # (M,) int64 into fields
    member_offsets: np.ndarray  # (M,) int64
    member_sizes: np.ndarray  # (M,) int64
    key_bytes: bytes  # utf-8 keys laid end to end
    saved: bool = False

    def __len__(self) -> int:
        return len(self.sample_starts) - 1

    def key(self, sample: int) -> str:
        start, end = _bounds(self.key_starts, sample)
        return self.key_bytes[start:end].decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[Member]:
        # One number at a time: a sample has few members, and a slice of an array takes as long as eight numbers.
        fields, offsets, sizes = self.member_fields.item, self.member_offsets.item, self.member_sizes.item
        return [
            Member(self.fields[fields(i)], offsets(i), sizes(i)) for i in range(*_bounds(self.sample_starts, sample))
        ]

    @classmethod
    def open(cls, path: Path) -> ShardIndex:
        """The index saved beside ``path`` if it belongs to the present shard, else a new one, saved if it can be."""
        index = cls.load(index_path(path), ShardState.of(path))
        if index is None:
            index = cls.build(path)
            index.save(index_path(path))
        return index

    @classmethod
    def build(cls, path: Path, *, state: ShardState | None = None, name: object = None) -> ShardIndex:
        """Scan the tar headers of ``path``, a copy of the shard ``name`` of ``state`` if these are given.

        Raises ValueError when it is no tar file.
        """
        state = state or ShardState.of(path)
        scan = TarScan()
        with open(path, "rb") as file:
            scan.read_tar(file, os.fstat(file.fileno()).st_size)
        if scan.problems and not scan.keys:
            problems = "; ".join(scan.problems)
            raise ValueError(f"{name or path} is not a readable tar file: {problems}; replace or remove it")
        keys = [key.encode("utf-8", "surrogateescape") for key in scan.keys]
        fields = sorted({member.field for member in scan.members})
        field_ids = {name: i for i, name in enumerate(fields)}
        return cls(
            state=state,
            fields=fields,
            problems=scan.problems,
            key_starts=np.cumsum([0, *map(len, keys)], dtype=np.int64),
            sample_starts=np.array([*scan.starts, len(scan.members)], dtype=np.int64),
            member_fields=np.array([field_ids[member.field] for member in scan.members], dtype=np.int64),
            member_offsets=np.array([member.offset for member in scan.members], dtype=np.int64),
            member_sizes=np.array([member.size for member in scan.members], dtype=np.int64),
            key_bytes=b"".join(keys),
        )

    def header(self) -> dict[str, Any]:
        """First line of the saved index."""
        return {
            "format": INDEX_FORMAT,
            "shard_size": self.state.size,
            "mtime_ns": self.state.mtime_ns,
            "etag": self.state.etag,
            "samples": len(self),
            "members": len(self.member_fields),
            "fields": self.fields,
            "problems": self.problems,
            "sha256": self.sha256,
        }

    @property
    def sha256(self) -> str:
        """Stands for all keys, fields, offsets and sizes."""
        return _digest(self.fields, self._body())

    def _body(self) -> bytes:
        arrays = [getattr(self, name).astype("<i8").tobytes() for name in ARRAYS]
        return b"".join([*arrays, self.key_bytes])

    def to_bytes(self) -> bytes:
        return json.dumps(self.header()).encode() + b"\n" + self._body()

    def save(self, target: Path) -> None:
        """Write by atomic replace; where that is not possible the index stays in memory."""
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(self.to_bytes())
            os.replace(temporary, target)
            self.saved = True
        except OSError as error:
            logger.info("an index stays in memory, %s cannot be written: %s", target, error)
            if os.access(temporary.parent, os.W_OK):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, state: ShardState) -> ShardIndex | None:
        """The index in the file ``path`` if it is whole and describes a shard of ``state``."""
        header, body = _read_file(path)
        if header is None or not describes(header, state) or _digest(header["fields"], body) != header["sha256"]:
            return None
        samples, members = header["samples"], header["members"]
        lengths = [samples + 1, samples + 1, members, members, members]
        numbers = np.frombuffer(body, dtype="<i8", count=sum(lengths))
        arrays = dict(zip(ARRAYS, np.split(numbers, np.cumsum(lengths[:-1])), strict=True))
        return cls(
            state=state,
            fields=header["fields"],
            problems=header["problems"],
            key_bytes=body[8 * sum(lengths) :],
            saved=True,
            **arrays,
        )


def _bounds(starts: np.ndarray, sample: int) -> tuple[int, int]:
    return starts.item(sample), starts.item(sample + 1)


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def saved_header(path: Path, state: ShardState) -> dict[str, Any] | None:
    """Header of the index in the file ``path`` if it describes a shard of ``state``."""
    header, _ = _read_file(path, header_only=True)
    return header if header is not None and describes(header, state) else None


def parse_header(line: bytes) -> dict[str, Any] | None:
    """Header in the first line of an index; None when it is damaged or of another format."""
    try:
        header = json.loads(line)
        whole = header["format"] == INDEX_FORMAT and header.keys() >= {"samples", "members", "fields", "problems"}
        return {"etag": None, **header} if whole and header.keys() >= {"shard_size", "mtime_ns", "sha256"} else None
    except (ValueError, KeyError, TypeError):
        return None


def describes(header: dict[str, Any], state: ShardState) -> bool:
    return ShardState(header["shard_size"], header["mtime_ns"], header["etag"]) == state


def _read_file(path: Path, *, header_only: bool = False) -> tuple[dict[str, Any] | None, bytes]:
    try:
        with open(path, "rb") as file:
            header = parse_header(file.readline())
            return header, b"" if header is None or header_only else file.read()
    except OSError:
        return None, b""  # absent or unreadable: it is built anew


def _digest(fields: list[str], body: bytes) -> str:
    return hashlib.sha256(json.dumps(fields).encode() + body).hexdigest()

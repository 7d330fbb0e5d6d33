"""WebDataset tar shards with random access: urls, an index beside each shard, and a reader.

A member ``dir/key.en.txt`` belongs to the sample ``dir/key`` as its field ``en.txt``: the key ends at the
first dot of the base name. Nothing is decoded here.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import secrets
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from braceexpand import braceexpand

logger = logging.getLogger(__name__)

INDEX_FORMAT = 1
INDEX_SUFFIX = ".idx"
ARRAYS = ("key_starts", "sample_starts", "member_fields", "member_offsets", "member_sizes")
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key, field
SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
CHUNK = 1 << 20
LONGEST_PADDING = 1 << 20  # bytes of zeros that may follow the last member
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def expand_urls(urls: str | Path | Sequence[str | Path]) -> list[Path]:
    """Local shards that ``urls`` name, in order: braces, globs, and directories (their ``*.tar``).

    Raises FileNotFoundError for a url that names nothing, ValueError for a scheme or a shard named twice.
    """
    patterns = [urls] if isinstance(urls, str | Path) else urls
    paths = [path for pattern in patterns for path in _expand_url(os.path.expanduser(pattern))]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(
            f"urls name {len(twice)} shards more than once, such as {twice[0]}: name each once; "
            "to see a source more often give it a larger weight"
        )
    return paths


def _expand_url(url: str | Path) -> list[Path]:
    url = str(url)
    if url.startswith("pipe:"):
        raise ValueError(f"{url!r}: 'pipe:' urls run a shell command and are refused; give the path of a tar file")
    if os.path.isfile(url):
        return [Path(url)]
    if SCHEME.match(url):
        raise ValueError(f"{url!r}: only local paths are read; copy remote shards to a disk and give their path")
    paths: list[Path] = []
    for pattern in [url] if os.path.isdir(url) else braceexpand(url):
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*.tar")
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [name for name in matches if os.path.isfile(name) and not name.endswith(INDEX_SUFFIX)]
        if not found:
            raise FileNotFoundError(f"no shard matches {pattern!r} (from {url!r}): {_surroundings(pattern)}")
        paths += [Path(name) for name in found]
    return paths


def _surroundings(pattern: str) -> str:
    """What the nearest existing directory of ``pattern`` holds."""
    directory = Path(pattern).absolute().parent
    while not directory.is_dir():
        directory = directory.parent
    names = sorted(entry.name + "/" * entry.is_dir() for entry in directory.iterdir())
    return f"{directory} holds {', '.join(names[:8]) or 'nothing'}{', …' if len(names) > 8 else ''}"


class Member(NamedTuple):
    """Where the bytes of one field of a sample lie in its shard."""

    field: str
    offset: int
    size: int


@dataclass(kw_only=True, eq=False)
class ShardIndex:
    """Keys and members of the S samples of one shard; M members in all."""

    path: Path
    shard_size: int
    mtime_ns: int
    fields: list[str]  # distinct field names
    problems: list[str]  # what the scan found wrong
    key_starts: np.ndarray  # (S + 1,) int64 into key_bytes
    sample_starts: np.ndarray  # (S + 1,) int64 into the member arrays
    member_fields: np.ndarray  # (M,) int64 into fields
    member_offsets: np.ndarray  # (M,) int64
    member_sizes: np.ndarray  # (M,) int64
    key_bytes: bytes  # utf-8 keys laid end to end
    saved: bool  # lies beside the shard

    def __len__(self) -> int:
        return len(self.sample_starts) - 1

    def key(self, sample: int) -> str:
        start, end = self.key_starts[sample : sample + 2].tolist()
        return self.key_bytes[start:end].decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[Member]:
        start, end = self.sample_starts[sample : sample + 2].tolist()
        offsets, sizes = self.member_offsets[start:end].tolist(), self.member_sizes[start:end].tolist()
        names = [self.fields[i] for i in self.member_fields[start:end].tolist()]
        return list(map(Member, names, offsets, sizes))

    @classmethod
    def open(cls, path: Path) -> ShardIndex:
        """The index saved beside ``path`` if it belongs to the present shard, else a new one."""
        index = cls._load(path)
        return cls.build(path)._save() if index is None else index

    @classmethod
    def build(cls, path: Path) -> ShardIndex:
        """Scan the tar headers of ``path``. Raises ValueError when it is no tar file."""
        stat = path.stat()
        scan = _Scan()
        with open(path, "rb") as file:
            scan.read_tar(file, stat.st_size)
        if scan.problems and not scan.keys:
            raise ValueError(f"{path} is not a readable tar file: {'; '.join(scan.problems)}; replace or remove it")
        keys = [key.encode("utf-8", "surrogateescape") for key in scan.keys]
        fields = sorted({member.field for member in scan.members})
        field_ids = {name: i for i, name in enumerate(fields)}
        return cls(
            path=path,
            shard_size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            fields=fields,
            problems=scan.problems,
            key_starts=np.cumsum([0, *map(len, keys)], dtype=np.int64),
            sample_starts=np.array([*scan.starts, len(scan.members)], dtype=np.int64),
            member_fields=np.array([field_ids[member.field] for member in scan.members], dtype=np.int64),
            member_offsets=np.array([member.offset for member in scan.members], dtype=np.int64),
            member_sizes=np.array([member.size for member in scan.members], dtype=np.int64),
            key_bytes=b"".join(keys),
            saved=False,
        )

    def header(self) -> dict[str, Any]:
        """First line of the saved index."""
        return {
            "format": INDEX_FORMAT,
            "shard_size": self.shard_size,
            "mtime_ns": self.mtime_ns,
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

    def _save(self) -> ShardIndex:
        """Write ``<shard>.idx`` by atomic replace; a directory that cannot be written leaves it in memory."""
        target = index_path(self.path)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            temporary.write_bytes(json.dumps(self.header()).encode() + b"\n" + self._body())
            os.replace(temporary, target)
            self.saved = True
        except OSError as error:
            logger.info("the index of %s stays in memory, it cannot be saved: %s", self.path, error)
            if os.access(temporary.parent, os.W_OK):
                temporary.unlink(missing_ok=True)
        return self

    @classmethod
    def _load(cls, path: Path) -> ShardIndex | None:
        header, body = _read_index(path)
        if header is None or _digest(header["fields"], body) != header["sha256"]:
            return None
        samples, members = header["samples"], header["members"]
        lengths = [samples + 1, samples + 1, members, members, members]
        numbers = np.frombuffer(body, dtype="<i8", count=sum(lengths))
        arrays = dict(zip(ARRAYS, np.split(numbers, np.cumsum(lengths[:-1])), strict=True))
        return cls(
            path=path,
            shard_size=header["shard_size"],
            mtime_ns=header["mtime_ns"],
            fields=header["fields"],
            problems=header["problems"],
            key_bytes=body[8 * sum(lengths) :],
            saved=True,
            **arrays,
        )


def index_path(shard: Path) -> Path:
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _digest(fields: list[str], body: bytes) -> str:
    return hashlib.sha256(json.dumps(fields).encode() + body).hexdigest()


def _read_index(shard: Path, *, header_only: bool = False) -> tuple[dict[str, Any] | None, bytes]:
    """Header and body of the index saved beside ``shard``; None if absent, or of another state of it."""
    stat = shard.stat()
    try:
        with open(index_path(shard), "rb") as file:
            header = json.loads(file.readline())
            body = b"" if header_only else file.read()
        expected = (INDEX_FORMAT, stat.st_size, stat.st_mtime_ns)
        if (header["format"], header["shard_size"], header["mtime_ns"]) == expected:
            return header, body
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, unreadable or damaged: it is built anew
    return None, b""


@dataclass
class _Scan:
    """What has been found so far in one tar."""

    keys: list[str] = field(default_factory=list)  # one per sample
    starts: list[int] = field(default_factory=list)  # first member of each sample
    members: list[Member] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)  # of the newest sample

    def read_tar(self, file: BinaryIO, size: int) -> None:
        """Add every member; reads on after a damaged header, which ``tarfile`` takes for the end."""
        start = file.read(8)
        for magic, name in COMPRESSED.items():
            if start.startswith(magic):
                self.problems.append(f"it is compressed with {name}, but shards are read in place: decompress it")
                return
        offset: int | None = 0
        while offset is not None:
            end = self._read_members(file, offset, size)
            file.seek(end)
            block = file.read(tarfile.BLOCKSIZE)
            at_marker = len(block) == tarfile.BLOCKSIZE and not block.strip(b"\0")
            offset = _find_header(file, end + tarfile.BLOCKSIZE, size)
            if end > size:
                self.problems.append(f"it is cut off at byte {size}")
            elif end == size:
                self.problems.append(f"no end-of-archive blocks at byte {size}: it may be cut off")
            elif offset is not None:
                self.problems.append(f"no tar header at byte {end}: lost what lies up to byte {offset}")
            elif not at_marker:
                self.problems.append(f"no tar header at byte {end}: lost what lies up to the end, byte {size}")
            elif size - end > LONGEST_PADDING:
                self.problems.append(f"it ends in {size - end} bytes of zeros from byte {end} on")
        self._note_repeated_keys()

    def _read_members(self, file: BinaryIO, offset: int, size: int) -> int:
        """Add the members from the header at ``offset`` on; returns the offset after the last one."""
        file.seek(offset)
        try:
            tar = tarfile.TarFile(fileobj=file)
        except tarfile.ReadError:
            return offset
        try:
            while (info := tar.next()) is not None:
                # Absent from the type stubs; unless emptied it keeps every member's header.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                if info.isreg() and not info.issparse() and info.offset_data + info.size <= size:
                    self._add(info)
        except tarfile.ReadError:
            pass  # what follows tar.offset is damaged or cut off
        return tar.offset

    def _add(self, info: tarfile.TarInfo) -> None:
        match = MEMBER_NAME.fullmatch(info.name)
        if match is None:
            return
        key, field_name = match[1], match[2].lower()
        if not self.keys or key != self.keys[-1] or field_name in self.fields:
            self.keys.append(key)
            self.starts.append(len(self.members))
            self.fields = set()
        self.fields.add(field_name)
        self.members.append(Member(field_name, info.offset_data, info.size))

    def _note_repeated_keys(self) -> None:
        if len(set(self.keys)) == len(self.keys):
            return
        key, count = Counter(self.keys).most_common(1)[0]
        self.problems.append(
            f"{count} samples have the key {key!r}: members of a sample must be adjacent and none given twice"
        )


def _find_header(file: BinaryIO, start: int, size: int) -> int | None:
    """Offset of the first block from ``start`` on that is a valid tar header."""
    for chunk_start in range(start, size, CHUNK):
        file.seek(chunk_start)
        chunk = file.read(CHUNK)
        magic = chunk.find(b"ustar")
        while magic >= 0:
            block = magic - 257  # the magic's place in a header
            if block >= 0 and block % tarfile.BLOCKSIZE == 0 and _is_header(chunk[block : block + tarfile.BLOCKSIZE]):
                return chunk_start + block
            magic = chunk.find(b"ustar", magic + 1)
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _OpenShard:
    descriptor: int
    index: ShardIndex


class ShardReader:
    """Random access to the samples of many shards; safe to fork and to pickle.

    ``counts`` are the samples per shard, ``problems`` the damage that indexing met (also logged), and
    ``fingerprint`` stands for all keys, offsets and sizes. With ``wanted`` only fields it accepts are read.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        wanted: Callable[[str], bool] | None = None,
        max_open: int = 64,
    ) -> None:
        self.shards = list(shards)
        self.wanted = wanted
        self.max_open = max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._unsaved: dict[int, ShardIndex] = {}
        headers = [self._header(i) for i in range(len(self.shards))]
        self.counts: list[int] = [header["samples"] for header in headers]
        self._digests: list[str] = [header["sha256"] for header in headers]
        self.problems: list[str] = [
            f"{path}: {problem}"
            for path, header in zip(self.shards, headers, strict=True)
            for problem in header["problems"]
        ]
        for problem in self.problems:
            logger.warning("%s", problem)
        self.fingerprint = hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def _header(self, shard: int) -> dict[str, Any]:
        path = self.shards[shard]
        header, _ = _read_index(path, header_only=True)
        if header is None:
            index = ShardIndex.open(path)
            header = index.header()
            if not index.saved:
                self._unsaved[shard] = index
        return header

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """The bytes of each wanted field of a sample. Raises OSError when the shard has become shorter."""
        opened = self._opened(shard)
        fields = {}
        for name, offset, size in opened.index.members(sample):
            if self.wanted is None or self.wanted(name):
                fields[name] = data = os.pread(opened.descriptor, size, offset)
                if len(data) != size:
                    path, key = self.shards[shard], opened.index.key(sample)
                    raise OSError(f"{path}: only {len(data)} of {size} bytes of {key}.{name} are there")
        return fields

    def key(self, shard: int, sample: int) -> str:
        return self._opened(shard).index.key(sample)

    def _opened(self, shard: int) -> _OpenShard:
        opened = self._open.get(shard)
        if opened is not None:
            self._open.move_to_end(shard)
            return opened
        path = self.shards[shard]
        index = self._unsaved[shard] if shard in self._unsaved else ShardIndex.open(path)
        if index.sha256 != self._digests[shard]:
            raise ValueError(f"{path} has changed since this run began: resume the run or start it anew")
        opened = self._open[shard] = _OpenShard(os.open(path, os.O_RDONLY), index)
        while len(self._open) > self.max_open:
            os.close(self._open.popitem(last=False)[1].descriptor)
        return opened

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1].descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

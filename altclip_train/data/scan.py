"""The members of a tar shard, found by its headers alone; a damaged header costs only its own member.

A member ``dir/key.en.txt`` belongs to the sample ``dir/key`` as its field ``en.txt``: the key ends at the
first dot of the base name.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key, field
CHUNK = 1 << 20
LONGEST_PADDING = 1 << 20  # bytes of zeros that may follow the last member
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """Where the bytes of one field of a sample lie in its shard."""

    field: str
    offset: int
    size: int


@dataclass
class TarScan:
    """What has been found so far in one tar; nothing is decoded."""

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

"""What one import was asked to do, and its place on disk."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from altclip_train.data.importers.chinese_clip import split_files
from altclip_train.data.importers.filters import Filters
from altclip_train.files import publish_first
from altclip_train.locks import is_at, lock_alone, remove_unheld

TABLE_KINDS = ("parallel", "moses", "image-text")
ANNOTATION_KINDS = ("coco", "flickr30k-cn", "coco-cn")
KINDS = (*TABLE_KINDS, *ANNOTATION_KINDS, "chinese-clip")
HOST = socket.gethostname().replace(".", "_").replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """The options of ``altclip data import``; ``texts`` maps a language to the column that holds its text."""

    kind: str
    inputs: Sequence[str | Path]
    output: Path
    texts: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] | None = None  # of a TSV or CSV without a header
    image: str = "image"  # column with the name, or the bytes, of the picture
    pictures: Path | None = None  # folder that names of pictures are relative to
    language: str = "zh"  # of captions whose format does not say it
    split: str = "train"  # of chinese-clip
    ids: Path | None = None  # pictures to keep, of annotation kinds
    samples_per_shard: int = 10_000
    filters: Filters = field(default_factory=Filters)
    exclude_pictures: Sequence[str] = ()
    skip_errors: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={self.samples_per_shard}: expected at least 1")
        if self.kind in ("parallel", "image-text") and len(self.texts) < 1 + (self.kind == "parallel"):
            raise ValueError(f"{self.kind} needs --text LANGUAGE=COLUMN for each language, such as --text zh=caption")
        if self.kind in ("image-text", *ANNOTATION_KINDS) and self.pictures is not None and not self.pictures.is_dir():
            raise FileNotFoundError(f"--pictures {self.pictures} is not a directory")
        if self.kind in ANNOTATION_KINDS and self.pictures is None:
            raise ValueError(f"{self.kind} needs --pictures, the folder of its pictures")

    @property
    def state(self) -> Path:
        """Folder of what a restart needs; may be deleted when the import is complete."""
        return self.output / ".import"

    def files(self) -> list[Path]:
        """The input files in order. Raises FileNotFoundError."""
        if self.kind == "chinese-clip":
            return [file for directory in self.inputs for file in split_files(Path(directory), self.split)]
        files = [Path(name) for name in self.inputs]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{file} is not a file")
        return files

    def settings(self, excluded: frozenset[bytes]) -> dict[str, Any]:
        """All that decides what is written; a restart must find it unchanged. Skipping errors is not part of it."""
        stats = [(file.name, file.stat()) for file in self.files()]
        return {
            "kind": self.kind,
            "inputs": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "texts": dict(self.texts),
            "columns": None if self.columns is None else list(self.columns),
            "image": self.image,
            "language": self.language,
            "ids": None if self.ids is None else hashlib.sha256(self.ids.read_bytes()).hexdigest(),
            "samples_per_shard": self.samples_per_shard,
            "filters": asdict(self.filters),
            "excluded_pictures": hashlib.sha256(b"".join(sorted(excluded))).hexdigest() if excluded else None,
        }

    def shard(self, number: int) -> Path:
        return self.output / f"{number:06d}.tar"

    def check_settings(self, excluded: frozenset[bytes]) -> None:
        """Note the settings in the output; raise ValueError when it was begun with others."""
        now, file = self.settings(excluded), self.state / "settings.json"
        if not file.is_file():
            if any(self.output.glob("*.tar")):
                raise FileExistsError(f"{self.output} holds shards that no import of ours began: give another --output")
            self.state.mkdir(parents=True, exist_ok=True)
            with temporary_beside(file) as temporary:
                temporary.write_text(json.dumps(now, ensure_ascii=False, indent=1), encoding="utf-8")
                if publish_first(temporary, file):
                    return
        begun = json.loads(file.read_text(encoding="utf-8"))
        if changed := [key for key in now if now[key] != begun.get(key)]:
            raise ValueError(
                f"{self.output} holds an import with other {', '.join(changed)}: "
                f"{[begun.get(key) for key in changed]}, now {[now[key] for key in changed]}. "
                "Give the old ones to go on with it, or another --output"
            )

    def remove_leftovers(self) -> None:
        """Delete temporary files of processes of this machine that are gone."""
        for path in [*self.output.glob(f".tmp-{HOST}-*"), *self.state.glob(f".tmp-{HOST}-*")]:
            remove_unheld(path)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, which `remove_leftovers` leaves alone for so long; gone when the block ends."""
    temporary = path.with_name(f".tmp-{HOST}-{secrets.token_hex(4)}-{path.name}")
    descriptor = _create_held(temporary)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _create_held(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = lock_alone(descriptor)
        except OSError:  # a file system without locks: leftovers stay there
            held = True
        if held and is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # taken for a leftover before it was locked


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the block ends without an error."""
    with temporary_beside(path) as temporary:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)

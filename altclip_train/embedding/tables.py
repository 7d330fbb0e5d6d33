"""`altclip embed --texts … --output DIR`, `--images …`: normalised features with ids, in parts of many records.

`embeddings.json` says what made them, and how much there is once every part is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from altclip_train.data.samples import IMAGE_FIELDS, is_image_field
from altclip_train.data.shards import ShardReader
from altclip_train.data.sidecars import differences
from altclip_train.data.texts import expand_texts, read_texts
from altclip_train.data.urls import Shard, expand_urls
from altclip_train.embedding.features import TEXTS_AT_ONCE, Members, progress_bar, read_members
from altclip_train.embedding.parts import (
    Part,
    count_rows,
    part_file,
    replace_file,
    require_parquet,
    skipped_pictures,
    write_part,
)
from altclip_train.embedding.towers import IMAGES, TEXTS, Towers

FORMAT = 1
ROWS = 100_000  # records of a part
LISTED = 20  # damaged pictures that are printed
DESCRIPTION = "embeddings.json"
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `embeddings.json` says. Totals are None until every part is there."""

    kind: str  # TEXTS or IMAGES
    fingerprint: dict[str, str]
    inputs: str  # a digest of the names of what is embedded
    width: int
    file_format: str
    rows_per_part: int
    parts: int | None = None
    rows: int | None = None
    skipped: int | None = None

    @classmethod
    def read(cls, directory: Path) -> Description | None:
        """That of a directory, None without one. Raises ValueError for a damaged one."""
        file = directory / DESCRIPTION
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return cls(**content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error}): embed into a new directory") from error

    def write(self, directory: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"
        replace_file(directory / DESCRIPTION, lambda stream: stream.write(text.encode()))

    def check_same(self, other: Description, directory: Path) -> None:
        """Raises ValueError when ``other`` would not make the same parts."""
        wrong = differences(other.fingerprint, self.fingerprint)
        fixed = ("kind", "inputs", "file_format", "rows_per_part")
        wrong += [f"{name} differ" for name in fixed if getattr(self, name) != getattr(other, name)]
        if wrong:
            raise ValueError(f"{directory} holds other embeddings: {'; '.join(wrong)}. Give a new directory")

    def lines(self, directory: Path) -> list[str]:
        """For people."""
        if self.parts is None:
            return [f"{directory}: these parts are there, others are not yet: run their processes, or this again"]
        lines = [f"{directory}: {self.rows:,} {self.kind} in {self.parts:,} parts, {self.skipped:,} damaged left out"]
        skipped = skipped_pictures(directory)
        lines += [f"  {line}" for line in skipped[:LISTED]]
        return [*lines, f"  … and {len(skipped) - LISTED:,} more"] if len(skipped) > LISTED else lines


class Picture(NamedTuple):
    """A picture that is read when it is needed."""

    name: str
    read: Callable[[], Members]


def embed_texts(towers: Towers, files: Sequence[str], table: Table) -> Description:
    """The texts of .txt, .tsv, .jsonl files and shards; the id of each is the text itself."""
    paths = expand_texts(files)

    def encode(texts: Sequence[str], done: Callable[[int], None]) -> Part:
        features = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            features.append(towers.encode_texts(texts[start : start + TEXTS_AT_ONCE]))
            done(len(features[-1]))
        return Part(list(texts), np.concatenate(features), [])

    return table.fill(towers, TEXTS, text_inputs(files), read_texts(paths), encode)


def embed_pictures(towers: Towers, sources: Sequence[str], table: Table) -> Description:
    """Pictures in files, at any depth of folders, and in shards; the id is a path, or ``shard#key``."""
    files, shards = _picture_sources(sources)
    reader = ShardReader(shards, wanted=is_image_field)

    def encode(pictures: Sequence[Picture], done: Callable[[int], None]) -> Part:
        part = Part([], np.empty((0, towers.width), np.float32), [])
        features = [part.features]
        for found in towers.encode_pictures(read_members(picture.read) for picture in pictures):
            if found.places:
                features.append(found.features)
            part.ids.extend(pictures[place].name for place in found.places)
            part.skipped.extend(f"{pictures[place].name}: {bad}" for place, bad in found.damaged.items())
            done(len(found.places) + len(found.damaged))
        return part._replace(features=np.concatenate(features))

    total = len(files) + sum(reader.counts)
    return table.fill(towers, IMAGES, _inputs(files, reader), _pictures(files, reader), encode, total)


def text_inputs(files: Sequence[str]) -> list[str]:
    """What stands for these texts: other texts have other inputs."""
    return [f"{path.absolute()} {path.stat().st_size}" for path in expand_texts(files)]


def picture_inputs(sources: Sequence[str]) -> list[str]:
    """What stands for these pictures: names of files, names and contents of shards."""
    files, shards = _picture_sources(sources)
    return _inputs(files, ShardReader(shards, wanted=is_image_field))


def pictures_of(sources: Sequence[str]) -> Iterator[Picture]:
    """Every picture by the id that it has among the embeddings."""
    files, shards = _picture_sources(sources)
    return _pictures(files, ShardReader(shards, wanted=is_image_field))


def local_shards(sources: Sequence[str]) -> list[str]:
    """Shards among the sources of pictures, which may have captions."""
    return [str(shard) for shard in _picture_sources(sources)[1] if isinstance(shard, Path)]


def _inputs(files: Sequence[Path], reader: ShardReader) -> list[str]:
    return [*(str(file.absolute()) for file in files), *map(str, reader.shards), reader.fingerprint]


def _picture_sources(sources: Sequence[str]) -> tuple[list[Path], list[Shard]]:
    """Picture files and shards; a folder stands for those below it. Raises FileNotFoundError."""
    files: list[Path] = []
    shards: list[str] = []
    for source in sources:
        path = Path(source).expanduser()
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        pictures = [file for file in found if file.suffix[1:].lower() in IMAGE_FIELDS and file.is_file()]
        tars = [str(file) for file in found if file.suffix == ".tar"] if path.is_dir() else []
        if path.is_dir() and not pictures and not tars:
            raise FileNotFoundError(f"{source} holds neither pictures ({', '.join(IMAGE_FIELDS)}) nor tar files")
        files += pictures
        shards += tars if path.is_dir() or pictures else [source]
    return files, expand_urls(shards)


def _pictures(files: Sequence[Path], reader: ShardReader) -> Iterator[Picture]:
    for file in files:
        yield Picture(str(file), partial(_read_file, file))
    for shard, samples in enumerate(reader.counts):
        for sample in range(samples):
            name = f"{reader.shards[shard]}#{reader.key(shard, sample)}"
            yield Picture(name, partial(reader.read, shard, sample))


def _read_file(file: Path) -> Members:
    return {"jpg": file.read_bytes()}  # what it is decides its content, not its name


@dataclass(frozen=True, kw_only=True)
class Table:
    """A directory of parts, of which this process makes ``part`` i of n."""

    directory: Path
    dtype: str = "float16"
    file_format: str = "npy"
    part: tuple[int, int] = (0, 1)
    rows_per_part: int = ROWS

    def fill(
        self,
        towers: Towers,
        kind: str,
        inputs: Sequence[str],
        records: Iterator[Record],
        encode: Callable[[Sequence[Record], Callable[[int], None]], Part],
        total: int | None = None,
    ) -> Description:
        """Make those of the own parts that are not there; ``total`` records, if that is known, are for the bar.

        Raises ValueError for parts of something else, FileExistsError for other files.
        """
        description = Description(
            kind=kind,
            fingerprint=towers.fingerprint(kind, self.dtype),
            inputs=hashlib.sha256("\n".join(inputs).encode()).hexdigest(),
            width=towers.width,
            file_format=self.file_format,
            rows_per_part=self.rows_per_part,
        )
        if self.file_format == "parquet":
            require_parquet()
        self._open(description)
        own, processes = self.part
        number = 0
        with progress_bar() as bar:
            task = bar.add_task(kind, total=total)
            while group := list(islice(records, self.rows_per_part)):
                file = part_file(self.directory, number, self.file_format)
                if number % processes == own and not file.exists():
                    write_part(file, encode(group, partial(bar.advance, task)), self.dtype)
                elif total is not None:
                    total -= len(group)
                    bar.update(task, total=total)
                number += 1
        if number == 0:
            raise ValueError(f"there are no {kind} to embed in {', '.join(inputs[:3])}")
        files = [part_file(self.directory, n, self.file_format) for n in range(number)]
        if all(file.exists() for file in files):
            totals = {"rows": sum(map(count_rows, files)), "skipped": len(skipped_pictures(self.directory))}
            description = replace(description, parts=number, **totals)
            description.write(self.directory)
        return description

    def _open(self, description: Description) -> None:
        found = Description.read(self.directory)
        if found is not None:
            description.check_same(found, self.directory)
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        # Another process of the same work may be about to write the description, too.
        others = [file.name for file in self.directory.iterdir() if DESCRIPTION not in file.name]
        if others:
            raise FileExistsError(f"{self.directory} holds {others[0]}, and no embeddings: give a new directory")
        description.write(self.directory)

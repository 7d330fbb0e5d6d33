"""Texts of any number of files, one after the other, without holding them in memory."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from altclip_train.data.samples import BadSample, decode_captions, is_caption_field, normalize_language
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import local_paths

logger = logging.getLogger(__name__)

_KINDS = (".txt", ".tsv", ".jsonl", ".tar")


def expand_texts(files: Sequence[str | Path]) -> list[Path]:
    """The files that paths, globs and braces name. Raises FileNotFoundError, ValueError for an unknown kind."""
    paths = local_paths(files)
    for path in paths:
        if _kind(path) not in _KINDS:
            raise ValueError(
                f"{path}: texts are read from {', '.join(_KINDS)} files, the first three also as .gz; "
                "rename or convert it"
            )
    return paths


def read_texts(paths: Sequence[Path], languages: Sequence[str] | None = None) -> Iterator[str]:
    """Every text that is not blank: lines of a .txt, cells of a .tsv, captions of a .jsonl and of a shard.

    ``languages`` limits captions, where a file says which language they are in. Samples that hold no captions
    are left out with one warning per file. Raises ValueError naming file and line for what is not UTF-8.
    """
    wanted = None if languages is None else {normalize_language(code) for code in languages}
    for path in paths:
        if _kind(path) == ".txt":
            yield from (line for line in _lines(path) if line.strip())
        elif _kind(path) == ".tsv":
            yield from (cell for line in _lines(path) for cell in line.split("\t") if cell.strip())
        else:
            yield from _captions(path, wanted)


def _captions(path: Path, wanted: set[str | None] | None) -> Iterator[str]:
    skipped, example = 0, ""
    for where, members in _samples(path):
        try:
            # und: a language that nobody names, for captions without one.
            captions = decode_captions(members, default_language="und")
        except BadSample as error:
            skipped, example = skipped + 1, example or f"{where}: {error}"
            continue
        for language, texts in captions.items():
            if wanted is None or language in wanted or language == "und":
                yield from texts
    if skipped:
        logger.warning("%s: left out %d samples without usable captions, such as %s", path, skipped, example)


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Name and caption members of each sample."""
    if _kind(path) == ".jsonl":
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                yield f"line {number}", {"json": line.encode()}
        return
    reader = ShardReader([path], wanted=is_caption_field)
    for sample in range(reader.counts[0]):
        yield reader.key(0, sample), reader.read(0, sample)


def _lines(path: Path) -> Iterator[str]:
    """Lines as text, split at newlines alone: captions may hold other separators, such as U+2028."""
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is not UTF-8 ({error}): convert the file to UTF-8") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged after line {number}: {error}; it should be gzip") from error


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" and not path.stem.endswith(".tar") else path.suffix

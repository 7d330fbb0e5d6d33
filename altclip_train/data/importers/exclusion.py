"""Digests of the pictures that an import must leave out: those of evaluation sets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from altclip_train.data.importers.filters import picture_digest
from altclip_train.data.processes import map_processes
from altclip_train.data.samples import IMAGE_FIELDS, BadSample, decode_image, is_image_field
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import expand_urls

logger = logging.getLogger(__name__)

FILES_PER_TASK = 256


def excluded_pictures(sources: Sequence[str], processes: int) -> frozenset[bytes]:
    """Digests of all pictures of ``sources``: shards, or folders with pictures and shards at any depth."""
    pictures: list[str] = []
    shards: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            files = sorted(path for path in Path(source).rglob("*") if path.is_file() and path.name[0] != ".")
            pictures += [str(path) for path in files if path.suffix[1:].lower() in IMAGE_FIELDS]
            shards += [str(path) for path in files if path.suffix == ".tar"]
            if not pictures and not shards:
                raise FileNotFoundError(f"{source} holds neither pictures nor tar files to exclude")
        else:
            shards += [str(path) for path in expand_urls(source)]
    tasks: list[list[str]] = [pictures[i : i + FILES_PER_TASK] for i in range(0, len(pictures), FILES_PER_TASK)]
    tasks += [[shard] for shard in shards]
    digests: set[bytes] = set()
    damaged = 0
    for found, bad in map_processes(_digests, None, tasks, processes):
        digests |= found
        damaged += bad
    if damaged:
        logger.warning("%d pictures of %s cannot be decoded and exclude nothing", damaged, ", ".join(sources))
    return frozenset(digests)


def _digests(_: None, files: list[str]) -> tuple[set[bytes], int]:
    digests: set[bytes] = set()
    damaged = 0
    for data in _pictures(files):
        try:
            digests.add(picture_digest(decode_image({"jpg": data})))
        except BadSample:
            damaged += 1
    return digests, damaged


def _pictures(files: list[str]) -> Iterator[bytes]:
    for file in files:
        if not file.endswith(".tar"):
            yield Path(file).read_bytes()
            continue
        reader = ShardReader(expand_urls(file), wanted=is_image_field)
        for sample in range(reader.counts[0]):
            yield from reader.read(0, sample).values()

"""``altclip data index``: an index beside every shard, and a report of what the shards hold and have lost."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from altclip_train.data.cache import ShardCache
from altclip_train.data.index import ShardIndex, ShardState, index_path
from altclip_train.data.processes import available_cpus, map_processes
from altclip_train.data.remote import state_of, write
from altclip_train.data.remote_index import MANIFEST_FORMAT, build_index, sidecar_header
from altclip_train.data.urls import INDEX_SUFFIX, RemoteUrl, Shard, expand_urls, without_secrets
from altclip_train.errors import Unreachable


@dataclass(kw_only=True)
class ShardReport:
    """What one shard holds. ``problems`` are damaged ranges; with an ``error`` nothing of it can be read."""

    shard: str
    samples: int = 0
    bytes: int | None = None
    fields: list[str] = field(default_factory=list)
    sha256: str | None = None  # of a local shard, where a manifest is written
    index_sha256: str | None = None  # of all keys, fields, offsets and sizes
    etag: str | None = None  # of a remote one
    problems: list[str] = field(default_factory=list)
    error: str | None = None
    built: bool = False  # now; else the index was there
    beside: bool = True  # the index lies beside the shard


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """How to index: ``rebuild`` ignores indexes that are there, ``hashed`` reads whole local shards for a sha256."""

    cache: ShardCache
    rebuild: bool = False
    hashed: bool = False


@dataclass(frozen=True)
class SourceReport:
    """The shards of one url pattern that were this process's part."""

    urls: str
    shards: list[ShardReport]

    @property
    def damaged(self) -> list[ShardReport]:
        return [shard for shard in self.shards if shard.problems]

    @property
    def broken(self) -> list[ShardReport]:
        return [shard for shard in self.shards if shard.error is not None]

    def lines(self) -> list[str]:
        size = sum(shard.bytes or 0 for shard in self.shards)
        fields = sorted({name for shard in self.shards for name in shard.fields})
        problems = sum(len(shard.problems) for shard in self.shards) + len(self.broken)
        built, elsewhere = sum(s.built for s in self.shards), sum(not s.beside for s in self.shards)
        summary = (
            f"{self.urls}: {len(self.shards)} shards, {sum(shard.samples for shard in self.shards):,} samples, "
            f"{size / 1e6:,.1f} MB, fields {' '.join(fields) or 'none'}, {problems} problems; "
            f"{built} indexed now, {len(self.shards) - built - len(self.broken)} before"
        )
        notes = [f"  {elsewhere} indexes could not be written beside their shards"] if elsewhere else []
        damage = [f"  {shard.shard}: {problem}" for shard in self.shards for problem in shard.problems]
        return [summary, *notes, *damage, *(f"  {shard.error}" for shard in self.broken)]


def index_sources(
    sources: Sequence[str], job: IndexJob, *, part: tuple[int, int] = (0, 1), processes: int | None = None
) -> list[SourceReport]:
    """Index the shards of each source that belong to part i of n; safe to run twice and at once.

    Raises FileNotFoundError, ValueError for urls that name nothing; what is wrong with a shard is in its report.
    """
    own, parts = part
    shards = [expand_urls(source)[own::parts] for source in sources]
    tasks = [shard for found in shards for shard in found]
    results = map_processes(index_shard, job, tasks, processes or available_cpus())
    reports = iter(list(track(results, "indexing", len(tasks), console=Console(stderr=True))))
    return [
        SourceReport(without_secrets(source), [next(reports) for _ in found])
        for source, found in zip(sources, shards, strict=True)
    ]


def index_shard(job: IndexJob, shard: Shard) -> ShardReport:
    """Index one shard unless its index is there and of its present state."""
    try:
        return _index_remote(job, shard) if isinstance(shard, RemoteUrl) else _index_local(job, shard)
    except (ValueError, OSError, Unreachable) as error:
        text = str(error)
        return ShardReport(shard=str(shard), error=text if str(shard) in text else f"{shard}: {text}", beside=True)


def _index_local(job: IndexJob, path: Path) -> ShardReport:
    state = ShardState.of(path)
    index = None if job.rebuild else ShardIndex.load(index_path(path), state)
    built = index is None
    if index is None:
        index = ShardIndex.build(path, state=state)
        index.save(index_path(path))
    report = _report(path, index.header(), built=built, beside=index.saved)
    if job.hashed:
        with open(path, "rb") as file:
            report.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return report


def _index_remote(job: IndexJob, url: RemoteUrl) -> ShardReport:
    state = state_of(url, job.cache.patience)
    header = None if job.rebuild else sidecar_header(url, state, job.cache)
    if header is not None:
        return _report(url, header, etag=state.etag)
    index = build_index(url, state, job.cache)
    beside = write(url.beside(INDEX_SUFFIX), index.to_bytes(), job.cache.patience)
    return _report(url, index.header(), etag=state.etag, built=True, beside=beside)


def _report(shard: Shard, header: dict[str, Any], **more: Any) -> ShardReport:
    return ShardReport(
        shard=str(shard),
        samples=header["samples"],
        bytes=header["shard_size"],
        fields=header["fields"],
        index_sha256=header["sha256"],
        problems=header["problems"],
        **more,
    )


def write_manifest(path: Path, reports: Sequence[SourceReport], part: tuple[int, int]) -> Path:
    """Write the JSON manifest; one of several parts has its part in its name. Returns where it is."""
    own, parts = part
    if parts > 1:
        path = path.with_name(f"{path.stem}.{own}-of-{parts}{path.suffix}")
    shards = [
        {key: value for key, value in asdict(shard).items() if key not in ("built", "beside")}
        for report in reports
        for shard in report.shards
    ]
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps({"format": MANIFEST_FORMAT, "shards": shards}, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
    return path

"""Run an import: shards by number, in any process, on any machine, after any kill.

Shard k holds what is left of records [k * n, (k + 1) * n). A shard that exists is whole and is not made again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from altclip_train.data.importers.exclusion import excluded_pictures
from altclip_train.data.importers.filters import content_digest, picture_digest
from altclip_train.data.importers.job import ImportJob, replacing
from altclip_train.data.importers.records import Cut, LeftOut, Records, Sample, prepare
from altclip_train.data.processes import map_processes
from altclip_train.data.samples import BadSample, decode_image
from altclip_train.data.shards import MAX_MEMBER_BYTES

REPORT = "import.json"
EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}  # by the first bytes, which decode_image checks


@dataclass
class Tally:
    """What became of records: read = written + all left_out + all errors."""

    read: int = 0
    written: int = 0
    texts: int = 0  # in the samples written
    left_out: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    texts_left_out: Counter[str] = field(default_factory=Counter)  # captions of samples that were written
    examples: dict[str, str] = field(default_factory=dict)  # the first of each reason

    def add(self, other: Tally) -> None:
        for name in ("read", "written", "texts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("left_out", "errors", "texts_left_out"):
            getattr(self, name).update(getattr(other, name))
        self.examples = {**other.examples, **self.examples}

    def as_json(self) -> dict[str, Any]:
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def load(cls, file: Path) -> Tally:
        tally = cls(**json.loads(file.read_text(encoding="utf-8")))
        for name in ("left_out", "errors", "texts_left_out"):
            setattr(tally, name, Counter(getattr(tally, name)))
        return tally


class ShardMaker:
    """Makes any shard of an import; sent to every process."""

    def __init__(self, records: Records, cuts: Sequence[Cut], excluded: frozenset[bytes]) -> None:
        self.records, self.cuts, self.excluded = records, cuts, excluded
        self.job: ImportJob = records.job

    def digests(self, number: int) -> Path:
        """File with a 64-bit digest of each record of a shard, 0 for one that is not imported anyway."""
        file = self.job.state / f"{number:06d}.digests"
        if not file.is_file():
            digests = np.zeros(self.job.samples_per_shard, np.uint64)
            for place, row in enumerate(self.records.rows(self.cuts[number])):
                try:
                    sample = self.records.sample(row, Counter())
                except BadSample:
                    continue
                digests[place] = content_digest(sample.captions, sample.picture)
            with replacing(file) as temporary:
                temporary.write_bytes(digests.tobytes())
        return file

    def write(self, number: int, repeated: np.ndarray | None) -> None:
        """Write shard ``number`` without the records at the places of ``repeated``, its tally before it."""
        tally, shard = Tally(), self.job.shard(number)
        with replacing(shard) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for sample in self._samples(number, set() if repeated is None else set(repeated.tolist()), tally):
                    for name, data in sample.items():
                        info = tarfile.TarInfo(name)  # with times and owners that are the same everywhere
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            with replacing(self.job.state / f"{shard.stem}.json") as file:
                file.write_text(json.dumps(tally.as_json(), ensure_ascii=False), encoding="utf-8")

    def _samples(self, number: int, repeated: set[int], tally: Tally) -> Iterator[dict[str, bytes]]:
        first = number * self.job.samples_per_shard
        for place, row in enumerate(self.records.rows(self.cuts[number])):
            tally.read += 1
            where, removed = self.records.where(row), Counter[str]()
            try:
                sample = self.records.sample(row, removed)
                extension = self._check_picture(sample)
                if place in repeated:
                    raise LeftOut("duplicate")
            except LeftOut as reason:
                tally.left_out[reason.reason] += 1
                tally.examples.setdefault(reason.reason, _example(where, reason))
            except BadSample as error:
                if not self.job.skip_errors:
                    raise ValueError(
                        f"{where}: {error}. Mend it, or leave such records out by --on-error skip"
                    ) from None
                tally.errors[error.reason] += 1
                tally.examples.setdefault(error.reason, _example(where, error))
            else:
                tally.written += 1
                tally.texts += sum(map(len, sample.captions.values()))
                tally.texts_left_out.update(removed)
                yield _members(f"{first + place:09d}", sample, extension)

    def _check_picture(self, sample: Sample) -> str | None:
        """Extension by the content of a picture that decodes and is not to be excluded."""
        if sample.picture is None:
            return None
        if len(sample.picture) > MAX_MEMBER_BYTES:
            raise BadSample("member_bytes", f"a picture of {len(sample.picture)} bytes, limit {MAX_MEMBER_BYTES}")
        image = decode_image({"jpg": sample.picture})
        if self.excluded and picture_digest(image) in self.excluded:
            raise LeftOut("evaluation_picture")
        return EXTENSIONS[sample.picture[:2]]


def run_import(job: ImportJob, *, processes: int = 1, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Make the shards of part i of n that are not there yet; returns the report on all that are there.

    Raises ValueError for a record that cannot be read, unless errors are skipped, and for an output that was
    begun with other settings or other input.
    """
    own, parts = part
    excluded = excluded_pictures(job.exclude_pictures, processes)
    job.check_settings(excluded)
    job.remove_leftovers()
    prepare(job)
    records = Records(job)
    total, cuts = records.cuts()
    if not total:
        raise ValueError(f"{', '.join(map(str, job.inputs))}: no records found")
    maker = ShardMaker(records, cuts, excluded)
    missing = [number for number in range(own, len(cuts), parts) if not job.shard(number).exists()]
    repeated: dict[int, np.ndarray] = {}
    if job.filters.drop_duplicates and missing:
        repeated = _repeated(maker, own, processes)
    tasks = [(number, repeated.get(number)) for number in missing]
    _run(_write, maker, tasks, processes, "writing shards")
    return write_report(job, total, len(cuts))


def _repeated(maker: ShardMaker, own: int, processes: int) -> dict[int, np.ndarray]:
    """Places of the records of each shard that equal an earlier record of the whole input.

    Every part needs the digests of all shards: it starts at its own and takes what other parts have left.
    """
    count = len(maker.cuts)
    _run(_digests, maker, [*range(own, count), *range(own)], processes, "looking for duplicates")
    digests = np.concatenate([np.fromfile(maker.digests(number), np.uint64) for number in range(count)])
    order = np.argsort(digests, kind="stable")
    equal = np.flatnonzero(digests[order[1:]] == digests[order[:-1]]) + 1
    later = np.sort(order[equal])
    later = later[digests[later] != 0]
    shards, places = np.divmod(later, maker.job.samples_per_shard)
    starts = np.searchsorted(shards, np.arange(count + 1))
    return {number: places[starts[number] : starts[number + 1]] for number in range(count)}


def _run(function: Any, maker: ShardMaker, tasks: Sequence[Any], processes: int, label: str) -> None:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(label, total=len(tasks))
        for error in map_processes(function, maker, tasks, processes):
            if error is not None:
                raise ValueError(error)
            progress.advance(bar)


def _digests(maker: ShardMaker, number: int) -> str | None:
    try:
        maker.digests(number)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _write(maker: ShardMaker, task: tuple[int, np.ndarray | None]) -> str | None:
    try:
        maker.write(*task)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def write_report(job: ImportJob, records: int, shards: int) -> dict[str, Any]:
    """``import.json`` in the output: what became of the records of all shards that are there."""
    while True:
        present = [number for number in range(shards) if job.shard(number).exists()]
        tally = Tally()
        for number in present:
            tally.add(Tally.load(job.state / f"{number:06d}.json"))
        report = {"kind": job.kind, "records": records, "shards": shards, "shards_written": len(present)}
        report |= tally.as_json()
        with replacing(job.output / REPORT) as temporary:
            temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        # Another part may have ended in between, and read the folder before this one's last shard was there.
        if present == [number for number in range(shards) if job.shard(number).exists()]:
            return report


def _members(key: str, sample: Sample, extension: str | None) -> dict[str, bytes]:
    """Names and bytes of the members of a sample."""
    texts = {language: found[0] if len(found) == 1 else found for language, found in sample.captions.items()}
    members = {f"{key}.json": json.dumps(texts, ensure_ascii=False).encode()}
    if extension is not None and sample.picture is not None:
        members[f"{key}.{extension}"] = sample.picture
    return members


def _example(where: str, error: BadSample) -> str:
    return f"{where}: {error.detail}" if error.detail else where

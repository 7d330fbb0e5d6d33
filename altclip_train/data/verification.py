"""``altclip data verify``: every sample read and decoded, every damage listed."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from altclip_train.data.parts import part_of_work
from altclip_train.data.processes import available_cpus, map_processes
from altclip_train.data.samples import (
    BadSample,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_field,
)
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import Shard, expand_urls
from altclip_train.errors import Unreachable
from altclip_train.processing.images import to_rgb

LISTED = 50  # damages that are printed; JSON has all


class Damage(NamedTuple):
    """``key`` is None where it concerns the shard."""

    shard: str
    key: str | None
    reason: str
    detail: str


@dataclass
class Verification:
    """What was read, and what of it is damaged."""

    shards: int = 0
    samples: int = 0
    pictures: int = 0
    texts: int = 0
    bytes: int = 0  # of all members
    damage: list[Damage] = field(default_factory=list)

    def add(self, other: Verification) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def lines(self) -> list[str]:
        read = f"{self.pictures:,} pictures and {self.texts:,} texts, {self.bytes / 1e6:,.1f} MB"
        lines = [f"read {self.samples:,} samples of {self.shards:,} shards: {read}"]
        if not self.damage:
            return [*lines, "no damage found"]
        reasons = Counter(damage.reason for damage in self.damage)
        lines.append("damaged: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()))
        lines += [
            f"  {damage.shard}: {'' if damage.key is None else damage.key + ': '}{damage.reason}: {damage.detail}"
            for damage in self.damage[:LISTED]
        ]
        if len(self.damage) > LISTED:
            lines.append(f"  … and {len(self.damage) - LISTED:,} more; --json lists all")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "damage": [damage._asdict() for damage in self.damage]}


def verify(
    urls: str | Path | Sequence[str | Path],
    *,
    part: tuple[int, int] = (0, 1),
    processes: int = 1,
    language: str | None = None,
) -> Verification:
    """Read and decode all samples of the shards that are part i of n. Raises FileNotFoundError, ValueError for urls."""
    shards = expand_urls(urls)[part[0] :: part[1]]
    results = map_processes(verify_shard, language, shards, processes)
    total = Verification()
    for found in track(results, "verifying", len(shards), console=Console(stderr=True), disable=not _is_terminal()):
        total.add(found)
    return total


def verify_shard(language: str | None, shard: Shard) -> Verification:
    """Read and decode all samples of one shard; ``language`` is that of plain txt captions."""
    found = Verification(shards=1)
    try:
        reader = ShardReader([shard])
    except (ValueError, OSError, Unreachable) as error:
        found.damage.append(Damage(str(shard), None, "shard_unreadable", str(error)))
        return found
    for problem in reader.problems:
        found.damage.append(Damage(str(shard), None, "shard", problem.removeprefix(f"{shard}: ")))
    for sample in range(reader.counts[0]):
        found.samples += 1
        try:
            _verify_sample(reader.read(0, sample), language, found)
        except (BadSample, OSError) as error:
            bad = error if isinstance(error, BadSample) else BadSample("unreadable", str(error))
            found.damage.append(Damage(str(shard), reader.key(0, sample), bad.reason, bad.detail))
    reader.close()
    return found


def _verify_sample(members: dict[str, bytes], language: str | None, found: Verification) -> None:
    """Decode all that a sample holds. Raises BadSample."""
    found.bytes += sum(map(len, members.values()))
    picture = {name: data for name, data in members.items() if is_image_field(name)}
    if picture:
        to_rgb(decode_image(picture))
        found.pictures += 1
    if "cls" in members:  # a classification benchmark: a label instead of captions
        if not members["cls"].strip().isdigit():
            raise BadSample("label", f"cls holds {members['cls'][:20]!r}, expected a number")
        return
    captions = {name: data for name, data in members.items() if is_caption_field(name)}
    if not picture and not captions:
        raise BadSample("nothing_to_read", f"members: {', '.join(members) or 'none'}")
    # und: a language that nobody names; that a txt has none is not damage.
    texts = decode_captions(captions, default_language=language or "und")
    found.texts += sum(map(len, texts.values()))


def _is_terminal() -> bool:
    return Console(stderr=True).is_terminal


def run(options: argparse.Namespace) -> None:
    """Verify, print, and exit with 1 when anything is damaged."""
    verification = verify(
        options.urls,
        part=part_of_work(options.part),
        processes=options.processes or available_cpus(),
        language=options.language,
    )
    print(*verification.lines(), sep="\n")
    if options.json is not None:
        Path(options.json).write_text(json.dumps(verification.as_json(), ensure_ascii=False, indent=1) + "\n")
    if verification.damage:
        raise SystemExit(1)

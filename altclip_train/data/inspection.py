"""``altclip data inspect``: what shards hold, in numbers and on a contact sheet."""

from __future__ import annotations

import argparse
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from altclip_train.data.contact_sheet import Pictured, contact_sheet
from altclip_train.data.inspection_tables import print_inspection
from altclip_train.data.processes import available_cpus, map_processes
from altclip_train.data.samples import (
    BadSample,
    decode_captions,
    decode_image,
    is_image_text_field,
)
from altclip_train.data.shards import ShardReader
from altclip_train.data.sources import language_code
from altclip_train.data.survey import Captions, Lens, Pictures, Survey, add, survey
from altclip_train.data.urls import expand_urls, without_secrets
from altclip_train.processing import CLIPTokenizer, XLMRTokenizer, load_tokenizer

CHUNK = 256  # samples of a task


def evenly_spread(counts: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Shard and number of ``wanted`` samples at equal distances over all shards; 0 or too many: of all samples."""
    total = sum(counts)
    wanted = min(wanted, total) if wanted > 0 else total
    ends = np.cumsum(counts)
    numbers = np.arange(wanted, dtype=np.int64) * total // max(wanted, 1)
    shards = np.searchsorted(ends, numbers, side="right")
    starts = ends - np.asarray(counts)
    return list(zip(shards.tolist(), (numbers - starts[shards]).tolist(), strict=True))


@dataclass
class Inspection:
    """The survey, and what the index says about all shards."""

    urls: list[str]
    shards: int
    samples: int
    problems: list[str]
    max_length: int | None  # of the tokenized texts
    survey: Survey

    def as_json(self) -> dict[str, Any]:
        found = self.survey
        return {
            "urls": self.urls,
            "shards": self.shards,
            "samples": self.samples,
            "problems": self.problems,
            "looked_at": found.samples,
            "labelled": found.labelled,
            "captions": {language: self._captions(captions) for language, captions in sorted(found.captions.items())},
            "pictures": self._pictures(found.pictures),
            "bad": {r: {"samples": n, "such_as": found.bad_examples[r]} for r, n in found.bad.most_common()},
            "repeated": {"samples": repeated(found.sample_digests), "pictures": repeated(found.picture_digests)},
        }

    def _captions(self, captions: Captions) -> dict[str, Any]:
        numbers: dict[str, Any] = {
            "samples": captions.samples,
            "texts": captions.texts,
            "other_script": captions.other_script,
            "characters": spread(captions.characters),
        }
        if self.max_length is not None:
            total = sum(length * texts for length, texts in captions.tokens.items())
            cut = sum(texts for length, texts in captions.tokens.items() if length > self.max_length)
            numbers |= {
                "tokens": spread(captions.tokens),
                "max_length": self.max_length,
                "truncated": cut / captions.texts,
                "unknown_tokens": captions.unknown / total,
                "texts_with_unknown_tokens": captions.with_unknown / captions.texts,
            }
        return numbers

    def _pictures(self, pictures: Pictures) -> dict[str, Any]:
        count = pictures.formats.total()
        if not count:
            return {"count": 0}
        return {
            "count": count,
            "mean_bytes": pictures.bytes / count,
            "formats": dict(pictures.formats.most_common()),
            "modes": dict(pictures.modes.most_common()),
            "width": spread(pictures.widths),
            "height": spread(pictures.heights),
        }


def spread(counts: Counter[int]) -> dict[str, float]:
    """Least, 5th percentile, median, 95th percentile, greatest and mean of values given by their counts."""
    values = np.array(sorted(counts), dtype=np.int64)
    ends = np.cumsum([counts[value] for value in values.tolist()])
    total = int(ends[-1])
    shares = {"p5": 0.05, "median": 0.5, "p95": 0.95}
    at = {name: int(values[np.searchsorted(ends, share * total)]) for name, share in shares.items()}
    mean = sum(value * count for value, count in counts.items()) / total
    return {"least": int(values[0]), **at, "greatest": int(values[-1]), "mean": mean}


def repeated(digests: array[int]) -> int:
    """How many are equal to an earlier one."""
    return len(digests) - len(np.unique(np.frombuffer(digests, np.uint64))) if digests else 0


def inspect(
    urls: Sequence[str],
    *,
    samples: int = 10_000,
    language: str | None = None,
    tokenizer: XLMRTokenizer | CLIPTokenizer | None = None,
    max_length: int = 77,
    processes: int = 1,
) -> Inspection:
    """Look at ``samples`` samples spread evenly over the shards, 0 for all. Raises FileNotFoundError, ValueError."""
    reader = ShardReader(expand_urls(urls), wanted=_is_read)
    places = evenly_spread(reader.counts, samples)
    tasks = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
    console = Console(stderr=True)
    results = map_processes(survey, Lens(reader, language, tokenizer), tasks, processes)
    results = track(results, "looking", len(tasks), console=console, disable=not console.is_terminal)
    total = Survey()
    for found in results:
        add(total, found)
    return Inspection(
        urls=list(map(without_secrets, urls)),
        shards=len(reader.shards),
        samples=sum(reader.counts),
        problems=reader.problems,
        max_length=None if tokenizer is None else max_length,
        survey=total,
    )


def _is_read(name: str) -> bool:
    return name == "cls" or is_image_text_field(name)


def pictured(reader: ShardReader, wanted: int, language: str | None) -> Iterator[Pictured]:
    """About ``wanted`` sound samples with pictures, spread evenly."""
    for shard, sample in evenly_spread(reader.counts, wanted):
        try:
            members = reader.read(shard, sample)
            image = decode_image(members)
            captions = {} if "cls" in members else decode_captions(members, default_language=language or "und")
            if "cls" in members:
                captions = {"cls": [members["cls"].decode("ascii", "replace").strip()]}
        except (BadSample, OSError):
            continue
        yield Pictured(reader.key(shard, sample), image, captions)


def run(options: argparse.Namespace) -> None:
    """Inspect, print the tables, and write what the options ask for."""
    language = None if options.language is None else language_code(options.language)
    inspection = inspect(
        options.urls,
        samples=options.samples,
        language=language,
        tokenizer=None if options.tokenizer is None else load_tokenizer(options.tokenizer),
        max_length=options.max_length,
        processes=options.processes or available_cpus(),
    )
    found = inspection.as_json()
    print_inspection(found)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if options.sheet is not None:
        reader = ShardReader(expand_urls(options.urls), wanted=_is_read)
        note = contact_sheet(
            list(pictured(reader, options.sheet_samples, language)),
            Path(options.sheet),
            title=", ".join(inspection.urls),
            subtitle=f"{inspection.samples:,} samples in {inspection.shards:,} shards; every "
            f"{max(1, inspection.samples // max(1, options.sheet_samples)):,}th is shown, with its first caption "
            "in each language",
            font=options.font,
        )
        print(f"contact sheet: {options.sheet}" + (f"\n{note}" if note else ""))

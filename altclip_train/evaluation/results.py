"""What an evaluation reports: one result per benchmark and language, as JSON, CSV and a terminal table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from altclip_train.evaluation.examples import RetrievalExamples
from altclip_train.evaluation.retrieval import RetrievalOutcome
from altclip_train.evaluation.statistics import Intervals, half_widths, scores_and_intervals
from altclip_train.evaluation.zero_shot import MultiLabelOutcome, ZeroShotOutcome
from altclip_train.files import read_json, written_whole

if TYPE_CHECKING:
    from rich.table import Table

AnyOutcome = RetrievalOutcome | ZeroShotOutcome | MultiLabelOutcome
KINDS = {"retrieval": RetrievalOutcome, "zero_shot": ZeroShotOutcome, "multi_label": MultiLabelOutcome}
RESULTS, SAMPLES = "results.json", "samples.json"


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Scores of one benchmark in one language; metrics and chance levels are shares in [0, 1].

    Scores of one benchmark and language may be compared when ``protocol``, a short id, is the same.
    """

    benchmark: str
    language: str
    protocol: str
    description: str  # what the protocol is, and what to know of this result
    metrics: dict[str, float]
    counts: dict[str, int]
    data_sha256: str
    intervals: Intervals = field(default_factory=dict)  # 95 %, of the metrics
    median_ranks: dict[str, float] = field(default_factory=dict)  # by direction, from 1
    chance: dict[str, float] = field(default_factory=dict)  # shown in the table, not part of the file
    # What happened to each picture and text, and what they are called: what a comparison with another model needs.
    outcome: AnyOutcome | None = field(default=None, repr=False, compare=False)
    pictures: Sequence[str] = field(default=(), repr=False, compare=False)
    texts: Sequence[str] = field(default=(), repr=False, compare=False)  # captions, or names of classes
    examples: RetrievalExamples | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{self.benchmark}/{self.language}/{name} is {value}, expected a share in [0, 1]")

    @classmethod
    def of(cls, outcome: AnyOutcome, **fields: Any) -> BenchmarkResult:
        """The result whose scores and intervals are those of ``outcome``."""
        metrics, intervals = scores_and_intervals(outcome)
        medians = outcome.median_ranks() if isinstance(outcome, RetrievalOutcome) else {}
        return cls(metrics=metrics, intervals=intervals, median_ranks=medians, outcome=outcome, **fields)

    @property
    def name(self) -> str:
        return f"{self.benchmark}/{self.language}"

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``results.json``."""
        return {
            "benchmark": self.benchmark,
            "language": self.language,
            "protocol": self.protocol,
            "description": self.description,
            "metrics": self.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "median_ranks": self.median_ranks,
            "counts": self.counts,
            "data_sha256": self.data_sha256,
        }

    def flat_metrics(self) -> dict[str, float]:
        """Metrics under the names that loggers get: ``<benchmark>/<language>/<metric>``."""
        return {f"{self.name}/{name}": value for name, value in self.metrics.items()}

    def summary(self) -> str:
        """One line for a log, in percent."""
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.metrics.items())
        return f"{self.name}: {scores}"


def write_results(path: str | Path, checkpoint: str | Path, results: Sequence[BenchmarkResult]) -> Path:
    """Write ``results.json`` whole or not at all: a reader never sees half a file."""
    path = Path(path)
    document = {"checkpoint": str(checkpoint), "results": [result.to_dict() for result in results]}
    with written_whole(path) as partial:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def write_samples(path: Path, results: Sequence[BenchmarkResult]) -> Path:
    """Write what happened to each picture and text, for `altclip compare`."""
    with written_whole(path) as partial:
        samples = [_sample_entry(result) for result in results if result.outcome is not None]
        partial.write_text(json.dumps({"samples": samples}, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_results(path: str | Path) -> tuple[str, list[BenchmarkResult]]:
    """Checkpoint and results of a directory that an evaluation wrote, with what happened to each sample.

    Raises FileNotFoundError and ValueError that name the file.
    """
    directory = Path(path)
    directory = directory.parent if directory.is_file() else directory
    for name in (RESULTS, SAMPLES):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} has no {name}; pass a directory that altclip_train.evaluate wrote")
    document, samples = read_json(directory / RESULTS), read_json(directory / SAMPLES)
    try:
        by_key = {(entry["benchmark"], entry["language"], entry["data_sha256"]): entry for entry in samples["samples"]}
        results = []
        for entry in document["results"]:
            key = entry["benchmark"], entry["language"], entry["data_sha256"]
            results.append(BenchmarkResult(**entry, **(_read_sample_entry(by_key[key]) if key in by_key else {})))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{directory}: {RESULTS} and {SAMPLES} do not fit together or are damaged: {error!r}"
        ) from error
    return str(document.get("checkpoint")), results


def _sample_entry(result: BenchmarkResult) -> dict[str, Any]:
    assert result.outcome is not None
    values = {field.name: getattr(result.outcome, field.name).tolist() for field in fields(result.outcome)}
    kind = next(name for name, kind in KINDS.items() if isinstance(result.outcome, kind))
    key = {"benchmark": result.benchmark, "language": result.language, "data_sha256": result.data_sha256}
    return {**key, "kind": kind, "pictures": list(result.pictures), "texts": list(result.texts), "outcome": values}


def _read_sample_entry(entry: dict[str, Any]) -> dict[str, Any]:
    values = {name: torch.tensor(value) for name, value in entry["outcome"].items()}
    return {"outcome": KINDS[entry["kind"]](**values), "pictures": entry["pictures"], "texts": entry["texts"]}


def write_csv(path: Path, results: Sequence[BenchmarkResult]) -> Path:
    """Write one line for each score: easy to sort and to plot."""
    head = ("benchmark", "language", "protocol", "metric", "value", "low", "high", "data_sha256")
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for result in results:
            for name, value in result.metrics.items():
                low, high = result.intervals.get(name, ("", ""))
                key = (result.benchmark, result.language, result.protocol)
                writer.writerow((*key, name, value, low, high, result.data_sha256))
    return path


def result_tables(results: Mapping[str, Sequence[BenchmarkResult]]) -> list[Table]:
    """One terminal table per kind of benchmark, in percent, with the chance level under each benchmark.

    ``results`` are those of each model by its short name. What stands after ± is half the width of the 95 % interval.
    """
    kinds: dict[tuple[str, ...], dict[str, list[_Row]]] = {}
    for model, own in results.items():
        for result in own:
            rows = kinds.setdefault(tuple(result.metrics), {})
            rows.setdefault(result.name, []).append(_Row(model if len(results) > 1 else "", result))
    return [_table(metrics, [row for group in rows.values() for row in group]) for metrics, rows in kinds.items()]


class _Row(NamedTuple):
    model: str
    result: BenchmarkResult

    def same_chance(self, other: _Row | None) -> bool:
        mine = self.result.benchmark, self.result.chance
        return other is not None and mine == (other.result.benchmark, other.result.chance)


def _table(metrics: tuple[str, ...], rows: list[_Row]) -> Table:
    from rich import box
    from rich.table import Table

    shown = tuple(name for name in metrics if "mAP@R" not in name)  # a line of 80 columns is full without it
    caption = "percent; ± 95 %" if any(row.result.intervals for row in rows) else "percent"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="right", padding=0)
    table.add_column("benchmark", overflow="fold")
    table.add_column("language")
    if several := any(row.model for row in rows):
        table.add_column("model")
    for metric in shown:
        table.add_column(_heading(metric), justify="right", no_wrap=True)
    for row, following in zip_longest(rows, rows[1:]):
        result, model = row.result, [row.model] if several else []
        table.add_row(result.benchmark, result.language, *model, *_percents(result.metrics, shown))
        blank = [""] if several else []
        if result.intervals.keys() & set(shown):
            table.add_row("", "±", *blank, *_percents(half_widths(result.intervals), shown), style="dim")
        if result.chance and not row.same_chance(following):
            table.add_row("", "chance", *blank, *_percents(result.chance, shown), style="dim")
    return table


def _heading(metric: str) -> str:
    direction, _, recall = metric.rpartition("_R@")
    if direction:
        source, target = direction.split("_to_")
        return f"{source}→\n{target}\nR@{recall}"
    return metric.replace("_", "\n", 1).replace("_", " ")


def _percents(values: dict[str, float], metrics: tuple[str, ...]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in metrics]

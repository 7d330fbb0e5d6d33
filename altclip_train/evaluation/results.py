"""What an evaluation reports: one result per benchmark and language, a JSON file and a terminal table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


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
    chance: dict[str, float] = field(default_factory=dict)  # shown in the table, not part of the file

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{self.benchmark}/{self.language}/{name} is {value}, expected a share in [0, 1]")

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``results.json``."""
        return {
            "benchmark": self.benchmark,
            "language": self.language,
            "protocol": self.protocol,
            "description": self.description,
            "metrics": self.metrics,
            "counts": self.counts,
            "data_sha256": self.data_sha256,
        }

    def flat_metrics(self) -> dict[str, float]:
        """Metrics under the names that loggers get: ``<benchmark>/<language>/<metric>``."""
        return {f"{self.benchmark}/{self.language}/{name}": value for name, value in self.metrics.items()}

    def summary(self) -> str:
        """One line for a log, in percent."""
        scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in self.metrics.items())
        return f"{self.benchmark}/{self.language}: {scores}"


def write_results(path: str | Path, checkpoint: str | Path, results: Sequence[BenchmarkResult]) -> Path:
    """Write ``results.json`` whole or not at all: a reader never sees half a file."""
    path = Path(path)
    document = {"checkpoint": str(checkpoint), "results": [result.to_dict() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def result_tables(results: Sequence[BenchmarkResult]) -> list[Table]:
    """One terminal table per kind of benchmark, in percent, with the chance level under each benchmark."""
    kinds: dict[tuple[str, ...], list[BenchmarkResult]] = {}
    for result in results:
        kinds.setdefault(tuple(result.metrics), []).append(result)
    return [_table(metrics, rows) for metrics, rows in kinds.items()]


def _table(metrics: tuple[str, ...], results: list[BenchmarkResult]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption="percent", caption_justify="right", padding=0)
    table.add_column("benchmark", overflow="fold")
    table.add_column("language")
    for metric in metrics:
        table.add_column(_heading(metric), justify="right", no_wrap=True)
    for result, following in zip_longest(results, results[1:]):
        table.add_row(result.benchmark, result.language, *_percents(result.metrics, metrics))
        same = following is not None and following.benchmark == result.benchmark and following.chance == result.chance
        if result.chance and not same:
            table.add_row("", "chance", *_percents(result.chance, metrics), style="dim")
    return table


def _heading(metric: str) -> str:
    direction, _, recall = metric.rpartition("_R@")
    if direction:
        source, target = direction.split("_to_")
        return f"{source}→\n{target}\nR@{recall}"
    return metric.replace("_", "\n", 1).replace("_", " ")


def _percents(values: dict[str, float], metrics: tuple[str, ...]) -> list[str]:
    return [f"{100 * values[name]:.1f}" if name in values else "" for name in metrics]

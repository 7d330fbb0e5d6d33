"""metrics.csv: one row per logged step, continued without gaps or doubles when a run is resumed."""

from __future__ import annotations

import csv
import io
import os
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger


class MetricsCSV(Logger):
    """Writes every logged metric to ``directory/metrics.csv``; new metrics become new columns.

    The whole file is written anew only for a new column; else from the first changed row to the end, so that a
    long run does not write its history over and over.
    """

    def __init__(self, *, directory: str) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}  # by step, ascending
        self.columns: list[str] = []
        self._begins: dict[int, int] = {}  # where each row begins in the file
        self._changed: int | None = None  # first step whose row the file lacks or has otherwise
        self._started = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        if not self._started:
            self.rows = {s: row for s, row in self._read().items() if s < step}
            self._started = True
        late = step not in self.rows and step < next(reversed(self.rows), step)
        self.rows.setdefault(step, {"step": step}).update(metrics)
        if late:
            self.rows = dict(sorted(self.rows.items()))
        self._changed = step if self._changed is None else min(step, self._changed)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved configuration lies beside the file."""

    @rank_zero_only
    def save(self) -> None:
        if (first := self._changed) is None:
            return
        changed = list(takewhile(lambda step: step >= first, reversed(self.rows)))[::-1]
        names = {name for step in changed for name in self.rows[step]}
        if names <= set(self.columns):
            with self.path.open("r+b") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(min((self._begins[step] for step in changed if step in self._begins), default=end))
                self._write(file, changed)
        else:
            names = names.union(self.columns, *self.rows.values()) - {"step"}
            self.columns = ["step", *sorted(names)]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            incomplete = self.path.with_name(f"{self.path.name}.incomplete")
            with incomplete.open("wb") as file:
                file.write(_line(self.columns))
                self._write(file, list(self.rows))
            os.replace(incomplete, self.path)
        self._changed = None

    def _write(self, file: BinaryIO, steps: list[int]) -> None:
        for step in steps:
            self._begins[step] = file.tell()
            file.write(_line([self.rows[step].get(name, "") for name in self.columns]))
        file.truncate()

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        self.save()

    def _read(self) -> dict[int, dict[str, Any]]:
        """Rows of an earlier part of the run."""
        rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(_whole_lines(self.path))]
        return {int(row["step"]): {**row, "step": int(row["step"])} for row in rows}


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) points of each metric, ascending; of a file that may be written to at this moment."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in csv.DictReader(_whole_lines(path)):
        with suppress(ValueError, TypeError):  # of a line that is half rewritten
            step = int(row["step"])
            for name, value in row.items():
                if name != "step" and value:
                    series.setdefault(name, []).append((step, float(value)))
    return series


def _whole_lines(path: Path) -> list[str]:
    """None where there is no file; a last line that a kill cut short is left out."""
    return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if path.is_file() else []


def _line(values: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()

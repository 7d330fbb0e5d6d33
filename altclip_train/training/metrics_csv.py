"""metrics.csv: one row per logged step, continued without gaps or doubles when a run is resumed."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger


class MetricsCSV(Logger):
    """Writes every logged metric to ``directory/metrics.csv``; new metrics become new columns."""

    def __init__(self, *, directory: str) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
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
        self.rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The resolved configuration lies beside the file."""

    @rank_zero_only
    def save(self) -> None:
        if not self.rows:
            return
        columns = ["step", *sorted({name for row in self.rows.values() for name in row} - {"step"})]
        temporary = self.path.with_name(f"{self.path.name}.incomplete")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))
        os.replace(temporary, self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        self.save()

    def _read(self) -> dict[int, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
        return {int(row["step"]): {**row, "step": int(row["step"])} for row in rows}

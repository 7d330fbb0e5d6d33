"""Every logger has the same metrics under the same names."""

from __future__ import annotations

import csv

import pytest

from tests.workspace import Workspace


def test_tensorboard_has_what_metrics_csv_has(workspace: Workspace):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the tensorboard extra"
    )
    run = workspace.train("stage=teacher", "logger=tensorboard", "eval=[starter_zero_shot]")
    events = accumulators.EventAccumulator(str(run.directory / "tensorboard"))
    events.Reload()
    with (run.directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        columns = set(next(csv.reader(file))) - {"step"}
    assert set(events.Tags()["scalars"]) - {"hp_metric"} == columns
    for name in ("train/loss", "starter_zero_shot/zh/top1"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx(run.metrics(name), rel=1e-6)

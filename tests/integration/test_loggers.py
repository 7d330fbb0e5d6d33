"""Every logger has the same metrics and pictures under the same names."""

from __future__ import annotations

import csv
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from tests.workspace import Run, Workspace


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


SHEETS = {"training_samples", "starter_retrieval/en/found", "starter_retrieval/zh/found", "starter_retrieval/ja/found"}
PICTURED = ["stage=contrastive", "eval=[starter_retrieval]", "callbacks.report.samples=3"]


def files_of(run: Run) -> dict[str, tuple[int, int]]:
    """Sizes of the sheets beside metrics.csv."""
    sizes = {}
    for file in (run.directory / "pictures").iterdir():
        with Image.open(file) as picture:
            sizes[file.name] = picture.size
    return sizes


def test_tensorboard_has_the_sheets_that_lie_beside_metrics_csv_once(workspace: Workspace):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the tensorboard extra"
    )
    directory = workspace.new_directory()
    overrides = [*PICTURED, f"start={workspace.clip}", "logger=tensorboard"]
    workspace.train(*overrides, "trainer.max_steps=2", directory=directory)
    (directory / "model" / "config.json").unlink()  # as if it had been stopped there
    run = workspace.train(*overrides, "trainer.max_steps=4", f"resume={directory}", directory=directory)
    events = accumulators.EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == SHEETS
    sizes = files_of(run)
    for name in SHEETS:
        pictures = events.Images(name)
        assert [picture.step for picture in pictures] == ([0] if name == "training_samples" else [2, 4])
        assert (pictures[-1].width, pictures[-1].height) == sizes[f"{name.replace('/', '_')}.png"]


def test_wandb_offline_has_the_same_metrics_and_sheets(workspace: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = workspace.train(*PICTURED, f"start={workspace.clip}", "logger=wandb")
    wandb.finish()
    (file,) = run.directory.glob("wandb/offline-run-*/run-*.wandb")
    keys: set[str] = set()
    for _ in range(300):  # wandb's own process writes the file, on a busy machine after finish() has returned
        keys = {key for row in records(file) for key in row if not key.startswith(("_", "trainer/"))}
        if {key.partition(".")[0] for key in keys} >= SHEETS:
            break
        time.sleep(0.1)
    with (run.directory / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        columns = set(next(csv.reader(lines))) - {"step"}
    assert keys - {key for key in keys if key.partition(".")[0] in SHEETS} == columns
    assert {key.partition(".")[0] for key in keys} >= SHEETS
    kept = {path.name for path in file.parent.glob("files/media/images/**/*.png")}
    assert len(kept) == len(files_of(run)) == len(SHEETS)


def records(file: Path) -> Iterator[dict[str, str]]:
    """Rows of the history in wandb's own file of an offline run: LevelDB's log format after a header of 7 bytes."""
    data, begin, message = file.read_bytes(), 7, b""
    while begin + 7 <= len(data):
        if (left := -begin % 32768) < 7 and left:  # the end of a block, too short for a header
            begin += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, begin)
        message += data[begin + 7 : begin + 7 + length]
        begin += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(message)
            message = b""
            if record.WhichOneof("record_type") == "history":
                yield {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}

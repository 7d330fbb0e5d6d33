"""A run killed on 4 ranks goes on on 2, then on 1, with other loader processes, and trains on the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest

from tests.faults.test_killed_runs import checkpoint_step, kill_when, trained_until
from tests.workspace import BATCH, Run, Workspace

pytestmark = pytest.mark.distributed

SAMPLES, DAMAGED, EPOCHS = 400, range(0, 400, 19), 4
STEPS = EPOCHS * SAMPLES // BATCH
# Devices, loader processes of each, and the step after whose checkpoint all are killed: in the middle of an epoch.
KILLED = [(4, 0, 30), (2, 1, 120)]
LAST = (1, 2)


class RecordOwnKeys(L.Callback):
    """Writes down the samples that this rank trains on, in a file of its own."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, *_) -> None:  # noqa: ARG002
        with (self.directory / f"rank{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {' '.join(batch.keys)}\n")


def record(directory: Path) -> str:
    directory.mkdir(parents=True)
    return f"+callbacks.record={{_target_: {__name__}.RecordOwnKeys, directory: {directory}}}"


def keys_by_step(directory: Path, ranks: int) -> dict[int, list[str]]:
    """The samples of each step that every rank has finished, in rank order."""
    lines = [(directory / f"rank{rank}").read_text().splitlines() for rank in range(ranks)]
    parts = [{int(step): keys for step, *keys in map(str.split, of_rank)} for of_rank in lines]
    finished = set.intersection(*map(set, parts))
    return {step: [key for part in parts for key in part[step]] for step in sorted(finished)}


def listed(directory: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (directory / "bad_samples.jsonl").read_text().splitlines()]


def test_order_of_samples_survives_kills_and_other_numbers_of_processes(workspace: Workspace):
    shard = workspace.damaged_texts(DAMAGED, SAMPLES)
    command = ["stage=teacher", f"data.parallel_texts=[{{urls: {shard}}}]", "data.max_bad_fraction=0.2"]
    command += [f"trainer.max_epochs={EPOCHS}", "trainer.max_steps=-1", "trainer.log_every_n_steps=5"]
    command += ["callbacks.checkpoints.every_n_train_steps=10", "data.val_texts=[]"]
    keys = workspace.new_directory()
    unbroken = workspace.train(*command, record(keys / "unbroken"))
    expected = keys_by_step(keys / "unbroken", 1)
    assert list(expected) == list(range(1, STEPS + 1))

    outputs, trained, first = workspace.new_directory(), {}, 0
    for devices, workers, step in KILLED:
        parts = [f"trainer.devices={devices}", f"data.num_workers={workers}", record(keys / str(devices))]
        run = kill_when(
            workspace.command(*command, *parts, "resume=auto", f"outputs={outputs}"), outputs, trained_until(step)
        )
        phase = keys_by_step(keys / str(devices), devices)
        assert min(phase) == first + 1  # goes on after the newest checkpoint
        trained.update(phase)
        first = checkpoint_step(run)
    devices, workers = LAST
    parts = [f"trainer.devices={devices}", f"data.num_workers={workers}", record(keys / str(devices))]
    workspace.train(*command, *parts, f"resume={run}", directory=run)
    phase = keys_by_step(keys / str(devices), devices)
    assert list(phase) == list(range(first + 1, STEPS + 1))
    trained.update(phase)

    assert trained == expected
    assert sorted(listed(run)) == sorted(listed(unbroken.directory)) == [f"{key:04d}" for key in DAMAGED]
    for name in ("data/skipped", "data/skipped/caption_json"):
        assert Run(run).metrics(name) == unbroken.metrics(name)

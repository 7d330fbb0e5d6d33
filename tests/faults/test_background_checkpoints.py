"""Checkpoints that are written while training goes on are those that it would have waited for."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.manifest import checkpoints, newest_whole, problem
from altclip_train.training.saving import Checkpoints
from altclip_train.training.sharded import FullyShardedStrategy
from altclip_train.training.signals import StoppedBySignal
from tests.faults.injections import inject
from tests.workspace import Workspace

BACKGROUND = ["stage=teacher", "callbacks.checkpoints.in_background=true"]
begun = threading.Event()


class Held(AtomicCheckpointIO):
    """Writes the checkpoint of one step only when `Begun` lets it."""

    def __init__(self, *, step: int) -> None:
        self.step = step
        begun.clear()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if checkpoint["global_step"] == self.step:
            assert begun.wait(60), "training waits for the writer"
        super().save_checkpoint(checkpoint, path, storage_options)


class Begun(L.Callback):
    """Lets go of what is held."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            begun.set()


class Failing(AtomicCheckpointIO):
    """A disk that fails from a step on, or what cannot be kept."""

    def __init__(self, *, step: int, error: str) -> None:
        self.step = step
        self.error = {"OSError": OSError, "TypeError": TypeError}[error]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if checkpoint["global_step"] >= self.step:
            raise self.error("injected")
        super().save_checkpoint(checkpoint, path, storage_options)


def plugin(kind: str, **options: Any) -> str:
    values = "".join(f", {name}: {value}" for name, value in options.items())
    return f"trainer.plugins=[{{_target_: {__name__}.{kind}{values}}}]"


def assert_same(ours: Any, theirs: Any, place: str = "checkpoint") -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), place
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), place
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{place}.{number}")
    else:
        assert ours == theirs, place


def test_training_goes_on_and_the_checkpoint_is_of_its_own_step(workspace: Workspace):
    keep = ["callbacks.checkpoints.keep=null"]
    expected = workspace.train("stage=teacher", *keep)
    begin = f"+callbacks.begun={{_target_: {__name__}.Begun, step: 3}}"
    run = workspace.train(*BACKGROUND, *keep, plugin("Held", step=2), begin)
    for step in (2, 4):
        ours, theirs = run.checkpoint(step), expected.checkpoint(step)
        del ours["run"]["config"], theirs["run"]["config"]  # they lie in two directories
        assert_same(ours, theirs)
    assert [problem(path) for path in checkpoints(run.directory / "checkpoints")] == [None, None]


def test_an_error_of_the_writer_is_raised_in_the_next_step(workspace: Workspace):
    directory = workspace.new_directory()
    options = ["trainer.max_steps=100", "callbacks.checkpoints.every_n_train_steps=20"]
    with pytest.raises(TypeError, match="injected"):
        workspace.train(*BACKGROUND, *options, plugin("Failing", step=40, error="TypeError"), directory=directory)
    assert newest_whole(directory / "checkpoints") == (directory / "checkpoints" / "step_000000020.ckpt", {})
    last = (directory / "metrics.csv").read_text().splitlines()[-1]
    assert int(last.partition(",")[0]) < 60  # the next checkpoint would have raised it at the latest


def test_a_disk_that_stays_full_ends_the_run_and_names_the_last_good_checkpoint(workspace: Workspace):
    directory = workspace.new_directory()
    options = ["callbacks.checkpoints.every_n_train_steps=1", "trainer.max_steps=20"]
    with pytest.raises(OSError, match=r"step_000000005.ckpt was not written \(3 in a row\): injected.*step_000000002"):
        workspace.train(*BACKGROUND, *options, plugin("Failing", step=3, error="OSError"), directory=directory)
    assert newest_whole(directory / "checkpoints") == (directory / "checkpoints" / "step_000000002.ckpt", {})


def test_a_signal_waits_for_the_writer_and_older_ones_have_gone(workspace: Workspace):
    directory = workspace.new_directory()
    options = ["trainer.max_steps=50", "callbacks.checkpoints.every_n_train_steps=1", "callbacks.checkpoints.keep=1"]
    with pytest.raises(StoppedBySignal):
        workspace.train(*BACKGROUND, *options, inject("Send", [5], signal=signal.SIGTERM), directory=directory)
    assert [path.name for path in checkpoints(directory / "checkpoints")] == ["step_000000006.ckpt"]
    assert newest_whole(directory / "checkpoints")[0] is not None


def test_sharded_checkpoints_are_not_written_in_the_background():
    options: dict[str, Any] = {"every_n_train_steps": 1, "every_n_minutes": None, "keep": None, "max_failures": 1}
    callback = Checkpoints(directory="run", **options, in_background=True, mirror=None)
    trainer: Any = type("Trainer", (), {"strategy": FullyShardedStrategy(precision="32-true")})
    with pytest.raises(ValueError, match="does not go with strategy=fsdp2"):
        callback.setup(trainer)

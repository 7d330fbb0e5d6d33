"""A checkpoint is whole or absent, and an older one survives whatever happens to a newer."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.runs import newest_checkpoint
from tests.workspace import Workspace

OLD = {"weights": torch.arange(6.0)}
NEW = {"weights": torch.arange(100_000.0)}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writing past ``limit`` bytes of any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_leaves_the_older_checkpoint_and_nothing_else(tmp_path: Path):
    checkpoints = tmp_path / "checkpoints"
    file = checkpoints / "step_000000010.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, file)
    for target in (file, checkpoints / "step_000000020.ckpt"):
        with full_disk(20_000), pytest.raises((OSError, RuntimeError)):
            AtomicCheckpointIO().save_checkpoint(NEW, target)
    assert [path.name for path in checkpoints.iterdir()] == [file.name]
    assert torch.equal(torch.load(file, weights_only=True)["weights"], OLD["weights"])
    assert newest_checkpoint(tmp_path) == file


def test_written_checkpoint_replaces_the_older_one(tmp_path: Path):
    file = tmp_path / "step_000000010.ckpt"
    for state in (OLD, NEW):
        AtomicCheckpointIO().save_checkpoint(state, file)
    assert torch.equal(torch.load(file, weights_only=True)["weights"], NEW["weights"])


def test_file_that_a_kill_left_half_written_is_not_resumed_from(workspace: Workspace):
    run = workspace.train("stage=teacher", "data.epoch_samples=32", "trainer.max_epochs=1", "trainer.max_steps=-1")
    (run.directory / "checkpoints" / "step_000000005.ckpt.incomplete").write_bytes(b"half of a checkpoint")
    more = ["data.epoch_samples=32", "trainer.max_epochs=2", "trainer.max_steps=-1"]
    resumed = workspace.train("stage=teacher", *more, f"resume={run.directory}", directory=run.directory)
    assert list(resumed.metrics("train/loss")) == list(range(8))

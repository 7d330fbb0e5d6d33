"""What Lightning's own parts do when the same goes wrong: the reason for ours, and the proof that the tests can fail.

Each test names the row of docs/reliability.md whose last column it stands behind.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from tests.faults.injections import Poison
from tests.faults.stock_run import Loader, Module, trainer
from tests.faults.test_checkpoint_files import small_disk  # noqa: F401 - a fixture
from tests.workspace import REPOSITORY, environment, run_command

pytestmark = pytest.mark.faults

BATCHES = torch.arange(80.0).view(10, 8) + 1


@pytest.fixture(autouse=True)
def lightnings_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def stock_command(directory: Path, **settings: Any) -> list[str]:
    return [sys.executable, "-m", "tests.faults.stock_run", str(directory), json.dumps(settings)]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A temporary directory on another file system than tmp_path."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm on a file system of its own")
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


def test_a_kill_inside_the_write_tears_the_checkpoint_that_was_done(tmp_path: Path, other_disk: Path):
    """Kill -9 while a checkpoint is written: where TMPDIR is another file system, the move at the end is a copy."""
    last, floats = tmp_path / "last.ckpt", 5_000_000
    command = stock_command(tmp_path, max_steps=1000, ballast=floats)
    variables = {**environment(), "TMPDIR": str(other_disk)}
    with subprocess.Popen(command, cwd=REPOSITORY, env=variables, stderr=subprocess.DEVNULL) as process:
        was_whole = torn = False
        while process.poll() is None and not torn:
            time.sleep(0.0005)
            is_whole = last.exists() and last.stat().st_size > 4 * floats
            if was_whole and not is_whole:
                process.send_signal(signal.SIGSTOP)
                torn = last.stat().st_size < 4 * floats
                process.send_signal(signal.SIGCONT if not torn else signal.SIGKILL)
            was_whole |= is_whole
    assert torn, "the run ended before it could be killed"
    with pytest.raises((EOFError, RuntimeError)):
        trainer(tmp_path, max_steps=1001).fit(Module(ballast=floats), DataLoader(BATCHES), ckpt_path="last")


def test_the_newest_is_loaded_whatever_is_in_it(tmp_path: Path):
    """Checkpoint shortened: an older one would be whole, but the newest by date is chosen."""
    trainer(tmp_path, max_steps=2).fit(Module(), DataLoader(BATCHES))
    os.truncate(tmp_path / "last.ckpt", 1000)
    assert len(list(tmp_path.glob("*.ckpt"))) == 3
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        trainer(tmp_path, max_steps=4).fit(Module(), DataLoader(BATCHES), ckpt_path="last")


def test_a_disk_that_is_full_costs_the_older_checkpoint(small_disk: Path):  # noqa: F811
    """Disk full."""
    last = small_disk / "last.ckpt"
    TorchCheckpointIO().save_checkpoint({"weights": torch.zeros(500_000)}, last)
    with pytest.raises(OSError, match="No space left"):
        TorchCheckpointIO().save_checkpoint({"weights": torch.zeros(900_000)}, last)
    with pytest.raises(RuntimeError, match="PytorchStreamReader"):
        torch.load(last, weights_only=True)


def test_what_cannot_be_read_back_is_saved(tmp_path: Path):
    """Something in a checkpoint that cannot be read back."""
    TorchCheckpointIO().save_checkpoint({"config": OmegaConf.create({"a": 1})}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        TorchCheckpointIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=True)


def test_a_gradient_that_is_not_finite_is_taken(tmp_path: Path):
    """Loss or gradient not finite."""
    module, run = Module(), trainer(tmp_path, max_steps=5, callbacks=[Poison(steps=[2])])
    run.fit(module, DataLoader(BATCHES))
    assert run.state.finished
    assert not all(bool(weights.isfinite().all()) for weights in module.parameters())


def test_dropout_does_not_go_on_as_it_would_have(tmp_path: Path):
    """Resume with dropout: random state is no part of a checkpoint."""
    first = Module()

    def losses(steps: int, path: Path, **options: Any) -> list[float]:
        module = copy.deepcopy(first)
        L.seed_everything(0, verbose=False)
        trainer(path, max_steps=steps).fit(module, DataLoader(BATCHES), **options)
        return module.losses

    unbroken = losses(6, tmp_path / "unbroken")
    assert losses(6, tmp_path / "again") == unbroken
    assert losses(3, tmp_path / "broken") == unbroken[:3]
    assert losses(6, tmp_path / "broken", ckpt_path="last")[-3:] != unbroken[3:]


def test_a_batch_is_skipped_by_a_loader_that_keeps_its_place(tmp_path: Path):
    """Kill -9 at any time: a loader with a state, but no length, is asked for one batch more than is trained."""
    trainer(tmp_path, max_steps=5).fit(Module(), Loader())
    resumed = Module()
    trainer(tmp_path, max_steps=8).fit(resumed, Loader(), ckpt_path="last")
    assert resumed.seen == [7.0, 8.0, 9.0]  # not 6


def test_the_last_step_is_not_saved_and_a_run_without_steps_does_not_come_to_its_end(tmp_path: Path):
    """Kill -9 between the last checkpoint and the model directory."""
    trainer(tmp_path, max_steps=3, every=2).fit(Module(), DataLoader(BATCHES))
    (saved,) = tmp_path.glob("epoch*.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 2
    ends: list[int] = []

    class End(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
            ends.append(trainer.global_step)

    for _ in range(2):  # the second has nothing left to train
        trainer(tmp_path, max_steps=4, callbacks=[End()]).fit(Module(), DataLoader(BATCHES), ckpt_path="last")
    assert ends == [4]


def test_sigterm_ends_with_code_zero_and_without_a_checkpoint(tmp_path: Path):
    """SIGTERM."""
    stop = {"kind": "Send", "signal": signal.SIGTERM, "steps": [3]}
    done = run_command(stock_command(tmp_path, max_steps=1000, every=1000, inject=stop))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sigterm_to_one_rank_of_two_waits_for_the_timeout_of_the_group(tmp_path: Path):
    """... to one rank of two; the same timeout is what a rank that hangs is waited for."""
    stop = {"kind": "Send", "signal": signal.SIGTERM, "steps": [3], "rank": 1}
    seconds = 15.0  # long enough for both to start on a busy machine
    command = stock_command(tmp_path, max_steps=100_000, every=100_000, devices=2, group_seconds=seconds, inject=stop)
    started = time.monotonic()
    done = run_command(command)
    assert time.monotonic() - started > seconds
    assert done.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_the_last_words_are_not_those_of_the_rank_that_died(tmp_path: Path):
    """A rank dies: last comes the other one's error of the network, or the launcher, which knows a process number."""
    fail = {"kind": "Raise", "steps": [3], "rank": 1}
    done = run_command(stock_command(tmp_path, max_steps=100_000, every=100_000, devices=2, inject=fail))
    assert done.returncode != 0
    _, cause, last = done.stderr.rpartition("RuntimeError: injected")
    assert cause, done.stderr
    assert "gloo" in last or "Forcefully terminating" in last, done.stderr

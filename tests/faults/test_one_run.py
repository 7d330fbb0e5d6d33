"""A run directory belongs to one run: one process at a time, one configuration."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from altclip_train.training.changes import check_unchanged
from altclip_train.training.lock import RunLock
from tests.workspace import REPOSITORY, Workspace, environment

HOLD = """
import sys, time
from pathlib import Path
from altclip_train.training.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_run_in_the_same_directory_is_refused_until_the_first_is_gone(workspace: Workspace):
    """Stock Lightning: both write, and each removes the checkpoints of the other."""
    run = workspace.train("stage=teacher", "trainer.max_steps=2")
    again = ["stage=teacher", "trainer.max_steps=4", f"resume={run.directory}"]
    config = (run.directory / "config.yaml").read_bytes()
    command = [sys.executable, "-c", HOLD, str(run.directory)]
    other = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"is in use by process {other.pid} on .*: wait for that run"):
            workspace.train(*again, directory=run.directory)
        assert (run.directory / "config.yaml").read_bytes() == config
    finally:
        other.kill()  # the lock file stays, and hinders nobody
        other.communicate()
    resumed = workspace.train(*again, directory=run.directory)
    assert list(resumed.metrics("train/loss")) == [0, 1, 2, 3]


def test_a_lock_that_was_released_can_be_taken_again(tmp_path: Path):
    first = RunLock(tmp_path)
    with pytest.raises(ValueError, match="in use by process"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunLock(tmp_path).release()
    assert f"{tmp_path} cannot be locked (Function not implemented)" in caplog.text


def config(key: str = "seed", value: Any = 0) -> dict[str, Any]:
    """A small configuration with another value at a dotted key."""
    document: dict[str, Any] = {
        "seed": 0,
        "stage": {"optimizer": {"lr": 1e-4, "betas": [0.9, 0.98]}, "locked": [], "compile": False},
        "data": {
            "parallel_texts": [{"urls": "a/*.tar", "weight": 1}, {"urls": "b/*.tar", "languages": ["zh"]}],
            "num_workers": 2,
            "clip": "clip",
        },
        "trainer": {"max_epochs": 3, "precision": "32-true", "devices": 1},
        "callbacks": {"checkpoints": {"keep": 2}},
    }
    node: Any = document
    *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
    for step in path:
        node = node[step]
    node[last] = value
    return document


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 1, "seed: 0 -> 1"),
        ("stage.optimizer.lr", 2e-4, "stage.optimizer.lr: 0.0001 -> 0.0002"),
        ("stage.optimizer.betas", [0.9, 0.99], "stage.optimizer.betas: [0.9, 0.98] -> [0.9, 0.99]"),
        ("stage.optimizer.eps", 1e-6, "stage.optimizer.eps: 'nothing' -> 1e-06"),
        ("trainer.precision", "bf16-mixed", "trainer.precision: '32-true' -> 'bf16-mixed'"),
        ("data.parallel_texts.1.languages", ["ja"], "data.parallel_texts[1].languages: ['zh'] -> ['ja']"),
    ],
)
def test_what_changes_a_step_is_listed(key: str, value: Any, line: str):
    with pytest.raises(ValueError, match="another configuration") as refused:
        check_unchanged(config(), config(key, value), run="runs/1")
    assert str(refused.value).splitlines()[1:-1] == [f"  {line}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.max_epochs", 9),
        ("trainer.devices", 8),
        ("callbacks.checkpoints.keep", 5),
        ("data.num_workers", 0),
        ("data.parallel_texts.0.urls", "elsewhere/*.tar"),
        ("data.clip", "moved/clip"),
        ("stage.compile", True),
    ],
)
def test_what_does_not_change_a_step_may_change(key: str, value: Any):
    check_unchanged(config(), config(key, value), run="runs/1")


def test_a_run_is_not_resumed_with_another_configuration_unless_forced(workspace: Workspace):
    """Stock Lightning: goes on, and takes the learning rate of the checkpoint without a word."""
    run = workspace.train("stage=teacher", "trainer.max_steps=2")
    changed = ["stage=teacher", f"resume={run.directory}", "stage.weight_decay=0.5", "seed=3"]
    with pytest.raises(ValueError, match=r"(?s)seed: 0 -> 3.*weight_decay: 0.01 -> 0.5.*resume_force=true"):
        workspace.train(*changed, directory=run.directory)
    forced = workspace.train(*changed, "resume_force=true", directory=run.directory)
    assert list(forced.metrics("train/loss")) == [0, 1, 2, 3]


@pytest.mark.faults
def test_two_commands_in_one_directory(workspace: Workspace):
    directory = workspace.new_directory()
    command = workspace.command("stage=teacher", "trainer.max_steps=100000", directory=directory)
    first = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (directory / "metrics.csv").is_file():
            assert first.poll() is None
            time.sleep(0.05)
        second = workspace.run_command("stage=teacher", f"hydra.run.dir={directory}")
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert f"error: {directory} is in use by process {first.pid}" in second.stderr

"""Stage one, killed and started again by the same command, ends as a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from altclip_train.training.runs import newest_checkpoint
from tests.integration.test_resume import record
from tests.workspace import REPOSITORY, Run, Workspace, environment

pytestmark = pytest.mark.faults

EPOCH, STEPS = 100, 300
COMMAND = [
    "stage=teacher",
    "resume=auto",
    f"data.epoch_samples={8 * EPOCH}",
    "trainer.max_epochs=3",
    "trainer.max_steps=-1",
    "trainer.log_every_n_steps=10",
    "callbacks.checkpoints.every_n_train_steps=20",
]


def checkpoint_step(run: Path) -> int:
    newest = newest_checkpoint(run)
    return int(newest.stem.removeprefix("step_")) if newest else 0


def last_logged_step(run: Path) -> int:
    file = run / "metrics.csv"
    lines = file.read_text().splitlines() if file.is_file() else []
    return int(lines[-1].partition(",")[0]) if len(lines) > 1 else -1


def kill_when(command: list[str], outputs: Path, ready: Callable[[Path], bool]) -> Path:
    """Run ``command`` in a process group of its own and kill all of it as soon as its run is ``ready``."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            runs = [path for path in (outputs / "teacher").glob("2*") if path.is_dir()]
            if runs and ready(runs[-1]):
                os.killpg(process.pid, signal.SIGSTOP)  # hold it still while looking again
                if ready(runs[-1]):
                    return runs[-1]
                os.killpg(process.pid, signal.SIGCONT)
            time.sleep(0.002)
        raise AssertionError("the run ended before it could be killed")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def trained_until(step: int) -> Callable[[Path], bool]:
    # A checkpoint is written a moment before the metrics of its step are: a kill between them loses that row.
    return lambda run: checkpoint_step(run) >= step and last_logged_step(run) >= checkpoint_step(run) - 1


def trained_keys(file: Path) -> dict[int, str]:
    """The samples of each step, of its last training."""
    return dict(line.split(" ", 1) for line in file.read_text().splitlines())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def unbroken(workspace: Workspace) -> Run:
    outputs = workspace.new_directory()
    keys = workspace.new_file()
    done = workspace.run_command(*COMMAND, f"outputs={outputs}", record(keys))
    assert done.returncode == 0, done.stdout + done.stderr
    directory = (outputs / "teacher" / "latest").resolve()
    keys.rename(directory / "keys")
    return Run(directory)


@pytest.mark.parametrize(
    ("kills", "workers", "in_background"), [([40], 0, False), ([40, 160], 0, True), ([120], 1, False)]
)
def test_killed_run_goes_on_in_its_directory_and_ends_the_same(
    workspace: Workspace, unbroken: Run, kills: list[int], workers: int, in_background: bool
):
    outputs, keys = workspace.new_directory(), workspace.new_file()
    options = [*COMMAND, f"outputs={outputs}", f"data.num_workers={workers}", record(keys)]
    options += [f"callbacks.checkpoints.in_background={in_background}"]
    killed = {kill_when(workspace.command(*options), outputs, trained_until(step)) for step in kills}
    (directory,) = killed
    assert not (directory / "model").exists()
    resumed_from = newest_checkpoint(directory)
    done = workspace.run_command(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumes from: {resumed_from}" in done.stdout
    assert [path for path in (outputs / "teacher").glob("2*") if path.is_dir()] == [directory]

    run = Run(directory)
    assert run.metrics("train/loss") == unbroken.metrics("train/loss")
    assert list(run.metrics("train/loss")) == list(range(9, STEPS, 10))
    assert run.metrics("val/other_mse") == unbroken.metrics("val/other_mse")
    steps = [line.partition(",")[0] for line in (directory / "metrics.csv").read_text().splitlines()]
    assert len(steps) == len(set(steps))
    assert trained_keys(keys) == trained_keys(unbroken.directory / "keys")
    ours, theirs = load_file(run.model / "model.safetensors"), load_file(unbroken.model / "model.safetensors")
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_same_command_after_the_end_starts_a_new_run(workspace: Workspace):
    outputs = workspace.new_directory()
    options = ["stage=teacher", "resume=auto", f"outputs={outputs}"]
    for _ in range(2):
        assert workspace.run_command(*options).returncode == 0
    runs = sorted(path for path in (outputs / "teacher").glob("2*"))
    assert len(runs) == 2
    assert (outputs / "teacher" / "latest").resolve() == runs[-1].resolve()


def test_ten_kills_at_random_moments_train_what_the_unbroken_run_trains(workspace: Workspace, unbroken: Run):
    """Stock Lightning with a loader that keeps its state: skips a batch at each resume, or begins at the first."""
    outputs, keys, chance = workspace.new_directory(), workspace.new_file(), random.Random(0)
    options = [*COMMAND, f"outputs={outputs}", record(keys)]

    def lines() -> list[str]:
        return keys.read_text().splitlines() if keys.is_file() else []

    for _ in range(10):
        enough = len(lines()) + chance.randint(1, 50)
        kill_when(workspace.command(*options), outputs, lambda _, enough=enough: len(lines()) >= enough)
        text = keys.read_text()
        keys.write_text(text[: text.rfind("\n") + 1])  # a line that the kill cut short
    done = workspace.run_command(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = trained_keys(unbroken.directory / "keys")
    for line in lines():  # also what was trained a second time
        step, _, samples = line.partition(" ")
        assert samples == expected[step]  # type: ignore[index]
    assert {line.partition(" ")[0] for line in lines()} == set(expected)
    run = Run((outputs / "teacher" / "latest").resolve())
    ours, theirs = load_file(run.model / "model.safetensors"), load_file(unbroken.model / "model.safetensors")
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name

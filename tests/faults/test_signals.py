"""A signal at any rank: every rank finishes its step, one checkpoint is written, the exit code is the signal's."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from altclip_train.training.manifest import checkpoints, newest_whole
from altclip_train.training.signals import Signals, StoppedBySignal
from tests.faults.injections import inject
from tests.integration.test_resume import EPOCHS, EVERY_STEP, LAST, assert_equal_runs
from tests.workspace import REPOSITORY, Workspace, environment

SELDOM = ["callbacks.checkpoints.every_n_train_steps=1000"]
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}


def saved_steps(directory: Path) -> list[int]:
    return [int(path.stem.removeprefix("step_")) for path in checkpoints(directory / "checkpoints")]


@pytest.mark.parametrize("number", CODES)
def test_a_signal_saves_the_step_and_exits_with_its_code(workspace: Workspace, number: signal.Signals):
    """Stock Lightning: SIGTERM ends with code 0 and without a checkpoint, SIGUSR1 kills, Ctrl-C ends with code 1."""
    before = signal.getsignal(number)
    directory = workspace.new_directory()
    with pytest.raises(StoppedBySignal) as stopped:
        workspace.train("stage=teacher", *SELDOM, inject("Send", [2], signal=number), directory=directory)
    assert stopped.value.code == CODES[number]
    assert saved_steps(directory) == [3]
    assert not (directory / "model").exists()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("step", [3, 5])  # the last of an epoch, before its validation; one in the middle
def test_a_run_stopped_by_a_signal_goes_on_as_one_that_was_not(workspace: Workspace, step: int):
    unbroken = workspace.train("stage=teacher", *EPOCHS, *EVERY_STEP)
    directory = workspace.new_directory()
    stop = inject("Send", [step - 1], signal=signal.SIGTERM)
    with pytest.raises(StoppedBySignal):
        workspace.train("stage=teacher", *EPOCHS, *SELDOM, stop, directory=directory)
    assert saved_steps(directory) == [step]
    resumed = workspace.train("stage=teacher", *EPOCHS, *EVERY_STEP, f"resume={directory}", directory=directory)
    assert_equal_runs(resumed, unbroken)
    assert list(resumed.metrics("train/loss")) == list(range(LAST))


def test_a_run_stopped_in_its_last_step_is_finished_by_a_resume(workspace: Workspace):
    directory = workspace.new_directory()
    with pytest.raises(StoppedBySignal):
        workspace.train("stage=teacher", inject("Send", [3], signal=signal.SIGTERM), directory=directory)
    assert saved_steps(directory) == [2, 4]
    workspace.train("stage=teacher", f"resume={directory}", directory=directory)
    assert (directory / "model" / "config.json").is_file()


def test_lightning_asks_in_each_step_under_the_name_that_is_replaced():
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_ctrl_c_again_stops_at_once_but_not_what_a_launcher_passes_on(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    signals = Signals(requeue=False)
    for seconds, number in ((10.0, signal.SIGINT), (10.2, signal.SIGINT), (15.0, signal.SIGTERM)):
        clock[0] = seconds
        signals._receive(number, None)
    with pytest.raises(KeyboardInterrupt):
        signals._receive(signal.SIGINT, None)


@pytest.mark.parametrize("array", [False, True])
def test_slurm_is_asked_to_run_the_job_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool
):
    """Stock Lightning: saves inside the signal handler, which waits for ever when only one rank got the signal."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    stop = inject("Send", [1], signal=signal.SIGUSR1)
    with pytest.raises(StoppedBySignal):
        workspace.train("stage=teacher", stop, "callbacks.signals.requeue=true")
    assert (tmp_path / "asked").read_text().split() == ["requeue", "70_3" if array else "77"]


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", CODES)
def test_a_signal_to_one_rank_of_two_stops_both(workspace: Workspace, number: signal.Signals, rank: int):
    """Stock Lightning: SIGTERM to rank 1 alone leaves both waiting until the timeout of the process group."""
    directory = workspace.new_directory()
    command = ["stage=teacher", "trainer.devices=2", "trainer.max_steps=100", *SELDOM]
    command += [f"callbacks.checkpoints.in_background={rank == 1}"]
    stop = inject("Send", [2], rank=rank, signal=number)
    started = time.monotonic()
    done = subprocess.run(
        workspace.command(*command, stop, directory=directory),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == CODES[number], done.stdout + done.stderr
    assert time.monotonic() - started < 200
    # The ranks know of it one step later, and none has gone on alone.
    newest, rejected = newest_whole(directory / "checkpoints")
    assert saved_steps(directory) == [4], done.stdout + done.stderr
    assert newest is not None
    assert not rejected


@pytest.mark.faults
def test_a_signal_to_the_whole_process_group_spares_the_loaders(workspace: Workspace):
    """Stock Lightning: Ctrl-C at a terminal also ends the loader processes, and the run with an error of theirs."""
    directory = workspace.new_directory()
    command = ["stage=teacher", "trainer.max_steps=100000", "data.num_workers=2", *SELDOM]
    process = subprocess.Popen(
        workspace.command(*command, "trainer.log_every_n_steps=5", directory=directory),
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = directory / "metrics.csv"
    try:
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert len(saved_steps(directory)) == 1
    assert "Traceback" not in output

"""What would spoil the weights is left out; what stands still ends; what goes wrong is said."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import queue
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from altclip_train.training.alarms import Alarms
from altclip_train.training.manifest import newest_whole
from altclip_train.training.non_finite import NonFiniteGuard
from altclip_train.training.watchdog import EXIT_CODE, Watchdog
from tests.faults.injections import inject
from tests.integration.test_resume import EVERY_STEP
from tests.workspace import Run, Workspace

# Muon takes a step unless gradients are gone; fused AdamW is told to leave it out. Ours takes word vectors by rows.
OPTIMIZERS = {
    "muon": [],
    "fused": ["stage.optimizer._target_=torch.optim.AdamW"],
    "rows": ["stage.optimizer._target_=altclip_train.adamw.AdamW"],
}


def listed(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "non_finite.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_with_an_infinite_gradient_changes_nothing_and_is_listed(workspace: Workspace, optimizer: str):
    """Stock Lightning: the weights are NaN from that step on, and the run finishes as if all were well."""
    overrides = ["stage=teacher", "trainer.max_steps=5", *EVERY_STEP, *OPTIMIZERS[optimizer]]
    run = workspace.train(*overrides, inject("Poison", [2], by_rows=optimizer == "rows"))
    before, after = run.checkpoint(2), run.checkpoint(3)
    for name, weights in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], weights), name
    for number, state in before["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(after["optimizer_states"][0]["state"][number][name], value), name
    assert not torch.equal(
        run.checkpoint(4)["state_dict"]["student.transformation.weight"],
        after["state_dict"]["student.transformation.weight"],
    )
    (entry,) = listed(run.directory)
    assert (entry["step"], entry["rank"], entry["gradient_norm"], len(entry["keys"])) == (3, 0, "inf", 8)
    assert math.isfinite(float(entry["loss"]))
    assert run.metrics("train/skipped_steps") == {3: 1.0, 4: 1.0}
    assert all(bool(torch.isfinite(weights).all()) for weights in run.checkpoint(5)["state_dict"].values())


def test_a_run_without_a_finite_step_stops_and_names_the_last_good_checkpoint(workspace: Workspace):
    directory = workspace.new_directory()
    overrides = ["stage=teacher", "trainer.max_steps=30", "callbacks.non_finite.max_in_a_row=3"]
    with pytest.raises(ValueError, match=r"not finite in 3 steps in a row, up to step 6.*step_000000006.ckpt"):
        workspace.train(*overrides, inject("Poison", range(3, 30)), directory=directory)
    assert [entry["step"] for entry in listed(directory)] == [4, 5, 6]
    newest, _ = newest_whole(directory / "checkpoints")
    assert newest is not None
    assert all(bool(w.isfinite().all()) for w in torch.load(newest, weights_only=True)["state_dict"].values())


@pytest.mark.faults
@pytest.mark.parametrize("optimizer", ["muon", "fused"])  # over ranks no gradient is by rows
def test_a_gradient_that_is_not_finite_on_one_rank_alone_is_left_out_on_both(workspace: Workspace, optimizer: str):
    """Stock Lightning: the ranks go on with different weights."""
    directory = workspace.new_directory()
    overrides = ["stage=teacher", "trainer.devices=2", *EVERY_STEP, *OPTIMIZERS[optimizer]]
    done = workspace.run(*overrides, inject("Poison", [2], rank=1), directory=directory)
    before, after = done.checkpoint(2), done.checkpoint(3)
    for name, weights in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], weights), name
    entries = listed(directory)
    assert [(entry["step"], entry["rank"]) for entry in entries] == [(3, 0), (3, 1)]
    assert [entry["gradient_norm"] for entry in entries][1] == "inf"
    assert len({key for entry in entries for key in entry["keys"]}) == 8


@pytest.mark.faults
def test_a_rank_that_sleeps_ends_both_with_their_stacks(workspace: Workspace):
    """Stock Lightning: waits for the timeout of the process group, half an hour, and does not say where."""
    started = time.monotonic()
    command = ["stage=teacher", "trainer.devices=2", "trainer.max_steps=100", "callbacks.watchdog.seconds=20"]
    done = workspace.run_command(*command, inject("Sleep", [3], rank=1))
    assert done.returncode != 0
    assert time.monotonic() - started < 200
    assert "rank 0: no step for 20 s" in done.stderr
    assert "rank 1: no step for 20 s" in done.stderr
    assert "injections.py" in done.stderr  # where it sleeps


@pytest.mark.faults
def test_a_run_that_stands_still_ends_with_its_stacks(workspace: Workspace):
    """Stock Lightning: stands still."""
    done = workspace.run_command("stage=teacher", "callbacks.watchdog.seconds=20", inject("Sleep", [2]))
    assert done.returncode == EXIT_CODE
    assert "rank 0: no step for 20 s after step 2" in done.stderr
    assert "injections.py" in done.stderr


def test_watchdog_waits_for_its_seconds_since_the_last_step(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", ended.put)
    monkeypatch.setattr("altclip_train.training.watchdog.SECONDS_TO_REPORT", 0.0)
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda all_threads: print(f"stacks of {all_threads=}"))
    trainer: Any = SimpleNamespace(global_step=7, global_rank=1, callbacks=[])
    watchdog, started = Watchdog(seconds=1.0), time.monotonic()
    watchdog.on_train_start(trainer, trainer)
    watchdog.on_train_batch_end(trainer)
    assert ended.get(timeout=60) == EXIT_CODE
    assert time.monotonic() - started >= 1.0
    output = capfd.readouterr()
    assert "error: rank 1: no step for 1 s after step 7" in output.err
    assert "stacks of" in output.out


def test_watchdog_sleeps_when_training_is_over():
    trainer: Any = SimpleNamespace(global_step=7, global_rank=0)
    watchdog = Watchdog(seconds=3600.0)
    watchdog.on_train_start(trainer, trainer)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    watchdog.on_train_end()
    thread.join(timeout=60)
    assert not thread.is_alive()


def alarm_lines(capsys: pytest.CaptureFixture[str], logged: list[dict[str, float]]) -> list[str]:
    alarms: Any = Alarms(every_n_steps=10, loss_spike=2.0, collapse=0.05, collapse_after_steps=100)
    for number, metrics in enumerate(logged, 1):
        named = {f"train/{name}": torch.tensor(value) for name, value in metrics.items()}
        alarms.on_train_batch_end(SimpleNamespace(is_global_zero=True, global_step=10 * number, callback_metrics=named))
    return capsys.readouterr().out.splitlines()


def test_a_loss_spike_is_said_once_while_it_lasts(capsys: pytest.CaptureFixture[str]):
    losses = [1.0, 0.9, 0.8, 0.8, 0.7, 0.7, 1.9, 2.5, 0.7, math.nan, 3.0]
    lines = alarm_lines(capsys, [{"loss": loss} for loss in losses])
    assert [line.partition(": the")[0] for line in lines] == [
        "warning: step 70: loss spike",
        "warning: step 110: loss spike",
    ]


def test_logit_scale_at_its_limit_and_a_collapsed_student_are_said(capsys: pytest.CaptureFixture[str]):
    logged = [{"logit_scale": 99.0, "spread": 0.01}] + 9 * [{"logit_scale": 100.0, "spread": 0.01}]
    assert [line.split(": ")[1:3] for line in alarm_lines(capsys, logged)] == [
        ["step 20", "logit_scale"],
        ["step 100", "collapse"],
    ]


def test_stages_log_what_the_alarms_look_at(workspace: Workspace):
    run = workspace.train("stage=teacher", "trainer.max_steps=2")
    assert all(value > 0 for value in run.metrics("train/spread").values())
    assert list(run.metrics("train/spread")) == [0, 1]
    contrastive: Run = workspace.train("stage=contrastive", f"start={run.model}", "trainer.max_steps=2")
    assert list(contrastive.metrics("train/logit_scale")) == [0, 1]


@pytest.mark.parametrize("steps", [0, -1])
def test_a_limit_of_no_steps_is_refused(steps: int):
    with pytest.raises(ValueError, match="expected at least 1"):
        NonFiniteGuard(directory="run", max_in_a_row=steps)

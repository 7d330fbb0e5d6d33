"""Two real processes train what one process trains on the joined batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_resume import record
from tests.workspace import Run, Workspace

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def start(workspace: Workspace) -> Run:
    return workspace.train("stage=teacher", "trainer.max_steps=2")


def assert_same_run(two: Run, one: Run) -> None:
    assert two.metrics("train/loss") == pytest.approx(one.metrics("train/loss"), rel=1e-5)
    assert two.learning_rates() == pytest.approx(one.learning_rates(), rel=1e-5)
    ours, theirs = load_file(two.model / "model.safetensors"), load_file(one.model / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # Adam divides by the root of the squared gradient: where a gradient is nearly zero, the rounding of another
        # order of summation decides the sign of a step.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda text, at=name: f"{at}: {text}")


# With 7 pairs, one rank has 3 and the other 4.
@pytest.mark.parametrize("batch", [8, 7])
def test_contrastive_stage_on_two_ranks_equals_one(workspace: Workspace, start: Run, batch: int):
    overrides = ["stage=contrastive", f"start={start.model}", f"data.global_batch_size={batch}"]
    keys = workspace.new_file()
    two = workspace.run(*overrides, "trainer.devices=2", record(keys))
    one = workspace.train(*overrides)
    assert_same_run(two, one)
    shares = [len(line.split()) - 1 for line in keys.read_text().splitlines()]
    assert sorted(shares) == [batch // 2] * 4 + [batch - batch // 2] * 4  # four steps on two ranks


@pytest.mark.parametrize("batch", [8, 5])
def test_teacher_stage_on_two_ranks_equals_one(workspace: Workspace, batch: int):
    overrides = ["stage=teacher", f"data.global_batch_size={batch}", "data.epoch_samples=16", "trainer.max_epochs=2"]
    two = workspace.run(*overrides, "trainer.devices=2")
    one = workspace.train(*overrides)
    assert_same_run(two, one)
    assert two.metrics("val/other_mse") == pytest.approx(one.metrics("val/other_mse"), rel=1e-4)


def test_a_process_group_of_one_rank_equals_none(workspace: Workspace, start: Run):
    overrides = ["stage=contrastive", f"start={start.model}", "trainer.max_steps=3"]
    assert_same_run(workspace.run(*overrides, "trainer.strategy=ddp"), workspace.train(*overrides))


def test_two_ranks_choose_the_same_dated_directory_and_evaluate_once(workspace: Workspace):
    outputs = workspace.new_directory()
    done = workspace.run_command("stage=teacher", f"outputs={outputs}", "trainer.devices=2", "eval=[starter_zero_shot]")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [path for path in (outputs / "teacher").iterdir() if not path.is_symlink()]
    assert len(runs) == 1
    assert list(Run(runs[0]).metrics("starter_zero_shot/en/top1")) == [4]
    assert done.stdout.count("run directory:") == 1
    assert done.stdout.count("benchmark") == 1


def test_a_dry_run_on_two_ranks_is_told_once_and_writes_nothing(workspace: Workspace):
    outputs = workspace.new_directory()
    done = workspace.run_command("stage=teacher", f"outputs={outputs}", "trainer.devices=2", "dry_run=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("global batch: 8 = 4 on each of 2 device(s)") == 1
    assert done.stdout.count("measured here over 3 steps") == 1
    assert not outputs.exists()


def test_run_of_two_ranks_resumes_on_one(workspace: Workspace):
    directory = workspace.new_directory()
    overrides = ["stage=teacher", "data.epoch_samples=24", "trainer.max_steps=-1"]
    workspace.run(*overrides, "trainer.max_epochs=2", "trainer.devices=2", directory=directory)
    resumed = workspace.train(*overrides, "trainer.max_epochs=3", f"resume={directory}", directory=directory)
    assert list(resumed.metrics("train/loss")) == list(range(9))


def test_an_error_on_a_rank_ends_all_of_them(workspace: Workspace):
    done = workspace.run_command("stage=teacher", "trainer.devices=2", "data.global_batch_size=1")
    assert done.returncode != 0
    assert "each rank needs at least one sample of every batch" in done.stderr

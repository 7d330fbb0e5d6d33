"""FSDP2 over gloo trains what one process trains; its checkpoints resume on any number of ranks, and run no code."""

from __future__ import annotations

import pytest
import torch

from altclip_train.export.checkpoint import open_trained_model
from tests.distributed.test_training_over_ranks import assert_same_run
from tests.integration.test_resume import stop_after
from tests.workspace import Run, Workspace

pytestmark = pytest.mark.distributed

SHARDED = ["strategy=fsdp2", "trainer.devices=2"]


@pytest.fixture(scope="module")
def start(workspace: Workspace) -> Run:
    return workspace.train("stage=teacher", "trainer.max_steps=2")


# With 5 texts, one rank has 2 and the other 3. The student comes from random weights: Muon.
@pytest.mark.parametrize("more", [["data.global_batch_size=5"], ["stage.micro_batch=2", "eval=[starter_retrieval]"]])
def test_teacher_stage_equals_one_process(workspace: Workspace, more: list[str]):
    overrides = ["stage=teacher", "data.epoch_samples=16", "trainer.max_epochs=2", *more]
    two = workspace.run(*overrides, *SHARDED)
    one = workspace.train(*overrides)
    assert_same_run(two, one)
    for name in ("val/other_mse", "starter_retrieval/zh/text_to_image_R@1"):
        assert two.metrics(name) == pytest.approx(one.metrics(name), rel=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        ["trainer.gradient_clip_val=0.01", "data.global_batch_size=7"],
        ["stage.locked=[text_model.embeddings.word_embeddings]", "stage.gradient_checkpointing=true"],
        ["stage.loss=sigmoid"],
    ],
)
def test_contrastive_stage_equals_one_process(workspace: Workspace, start: Run, more: list[str]):
    overrides = ["stage=contrastive", f"start={start.model}", *more]
    two = workspace.run(*overrides, *SHARDED)
    one = workspace.train(*overrides)
    assert_same_run(two, one)
    for name in ("train/logit_scale", "train/logit_bias"):
        assert two.metrics(name) == pytest.approx(one.metrics(name), rel=1e-6)


def test_run_resumes_on_another_number_of_ranks_and_its_checkpoint_becomes_a_model(workspace: Workspace):
    overrides = ["stage=teacher", "data.epoch_samples=24", "trainer.max_steps=-1", "trainer.max_epochs=2"]
    overrides += ["callbacks.checkpoints.every_n_train_steps=3"]
    directory = workspace.new_directory()
    killed = workspace.run_command(*overrides, *SHARDED, stop_after(4), f"hydra.run.dir={directory}")
    assert "Stop" in killed.stderr
    assert sorted(path.name for path in directory.glob("checkpoints/*.ckpt*"))[0] == "step_000000003.ckpt"
    unbroken = workspace.train(*overrides)

    exported = open_trained_model(directory / "checkpoints" / "step_000000003.ckpt").model.text_model.state_dict()
    for name, tensor in unbroken.checkpoint(3)["state_dict"].items():
        torch.testing.assert_close(exported[name.removeprefix("student.")], tensor, rtol=1e-3, atol=2e-5)

    workspace.run(*overrides, "strategy=fsdp2", f"resume={directory}", directory=directory)
    assert_same_run(Run(directory), unbroken)
    refused = workspace.run_command(*overrides, f"resume={directory}", "trainer.max_epochs=3")
    assert refused.returncode == 1
    assert "strategy" in refused.stderr

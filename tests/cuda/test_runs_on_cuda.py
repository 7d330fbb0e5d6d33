"""Whole runs on a GPU: both stages, resuming, sharded training, evaluation and embedding, beside the CPU's."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from altclip_train.models import load_model
from tests.integration.test_resume import stop_after
from tests.workspace import REPOSITORY, Run, Workspace, run_command

GPU = ["trainer.accelerator=gpu"]


@pytest.fixture(scope="module")
def teacher(workspace: Workspace) -> Run:
    return workspace.run("stage=teacher", *GPU, "trainer.max_steps=6")


def assert_near(found: dict[int, float], expected: dict[int, float], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for step, value in expected.items():
        assert found[step] == pytest.approx(value, rel=tolerance), step


def test_teacher_stage_follows_the_cpu(workspace: Workspace, teacher: Run):
    assert_near(
        teacher.metrics("train/loss"), workspace.run("stage=teacher", "trainer.max_steps=6").metrics("train/loss"), 1e-3
    )


@pytest.mark.parametrize("more", [[], ["stage.loss=sigmoid"], ["stage.micro_batch=3"], ["data.embeddings=fill"]])
def test_contrastive_stage_follows_the_cpu(workspace: Workspace, teacher: Run, more: list[str]):
    overrides = ["stage=contrastive", f"start={teacher.model}", *more]
    gpu, cpu = workspace.run(*overrides, *GPU), workspace.run(*overrides)
    assert_near(gpu.metrics("train/loss"), cpu.metrics("train/loss"), 1e-3)


@pytest.mark.parametrize("stage", ["teacher", "contrastive"])
@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:`torch.jit.script:DeprecationWarning",
    "ignore:The .grad attribute:UserWarning",
)
def test_the_precision_chosen_by_itself_is_bf16_and_compiled_blocks_train(
    workspace: Workspace, teacher: Run, stage: str
):
    start = [] if stage == "teacher" else [f"start={teacher.model}"]
    run = workspace.train(
        f"stage={stage}", *start, *GPU, "trainer.precision=${fastest_precision:gpu}", "stage.compile=true"
    )
    assert run.trainer.precision == "bf16-mixed"
    assert len(run.metrics("train/loss")) == 4
    assert all(np.isfinite(list(run.metrics("train/loss").values())))
    assert all(p.dtype == torch.float32 for p in run.stage.parameters())


def test_a_resumed_run_ends_where_the_unbroken_one_does(workspace: Workspace, teacher: Run):
    directory = workspace.new_directory()
    overrides = ["stage=teacher", *GPU, "trainer.max_steps=6"]
    stopped = workspace.run_command(*overrides, stop_after(3), f"hydra.run.dir={directory}")
    assert "Stop" in stopped.stderr
    resumed = run_command(
        [sys.executable, str(REPOSITORY / "train.py"), *workspace.overrides(*overrides), f"resume={directory}"]
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_near(Run(directory).metrics("train/loss"), teacher.metrics("train/loss"), 1e-4)


@pytest.mark.parametrize("strategy", [["trainer.strategy=ddp"], ["strategy=fsdp2"]])
def test_one_rank_over_nccl_trains_what_no_strategy_trains(workspace: Workspace, teacher: Run, strategy: list[str]):
    run = workspace.run("stage=teacher", *GPU, "trainer.max_steps=6", *strategy)
    assert_near(run.metrics("train/loss"), teacher.metrics("train/loss"), 1e-3)


def test_evaluation_gives_the_same_metrics_on_both_devices(workspace: Workspace, teacher: Run):
    measured = []
    for device in ("cpu", "cuda"):
        target = workspace.new_directory()
        command = [sys.executable, "-m", "altclip_train.evaluate", f"checkpoint={teacher.model}", f"device={device}"]
        command += [
            f"starter={workspace.starter}",
            "eval=[starter_retrieval,starter_zero_shot]",
            f"hydra.run.dir={target}",
        ]
        done = run_command(command)
        assert done.returncode == 0, done.stdout + done.stderr
        measured.append(json.loads((target / "results.json").read_text(encoding="utf-8"))["results"])
    for cpu, gpu in zip(*measured, strict=True):
        assert gpu["metrics"] == pytest.approx(cpu["metrics"], abs=1e-9)


def test_a_model_of_the_gpu_run_loads_on_the_cpu(teacher: Run):
    model = load_model(teacher.model)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())

"""Best checkpoint and early stop by the scores of benchmarks, with Lightning's own callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from altclip_train.evaluation import BenchmarkCallback, BenchmarkResult, FeatureEncoder, StopEarly
from tests.unit.test_benchmarks import TinyStage, fit
from tests.workspace import Workspace

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*:FutureWarning", "ignore:.*exists and is not empty.*"
)
MONITOR = "course/en/top1"


class Course:
    """A benchmark whose scores are set beforehand."""

    name, languages = "course", ("en",)

    def __init__(self, scores: list[float]) -> None:
        self.scores = iter(scores)

    def prepare(self) -> None:
        """Nothing to read."""

    def evaluate(self, encoder: FeatureEncoder) -> list[BenchmarkResult]:  # noqa: ARG002
        metrics = {"top1": next(self.scores)}
        return [
            BenchmarkResult(
                benchmark="course",
                language="en",
                protocol="generic",
                description="",
                metrics=metrics,
                counts={},
                data_sha256="",
            )
        ]


def train(folder: Path, scores: list[float], *, patience: int) -> tuple[TinyStage, ModelCheckpoint]:
    course: Any = Course(scores)
    best = ModelCheckpoint(folder, filename="best_{step}", monitor=MONITOR, mode="max", every_n_train_steps=2)
    stage = TinyStage(image_tower_locked=True)
    # Before the benchmarks in the list: Lightning moves checkpoints to the end.
    callbacks = [best, BenchmarkCallback(benchmarks={"course": course}, every_n_steps=2)]
    fit(folder, [*callbacks, StopEarly(monitor=MONITOR, patience=patience)], stage, steps=12, checkpoints=True)
    return stage, best


def test_best_checkpoint_is_that_of_the_best_score(tmp_path: Path) -> None:
    _, best = train(tmp_path, [0.1, 0.4, 0.3, 0.2, 0.1, 0.2], patience=9)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["best_step=4.ckpt"]
    assert best.best_model_score == pytest.approx(0.4)


def test_training_stops_when_no_evaluation_is_better(tmp_path: Path) -> None:
    # Best at step 4; steps 6 and 8 are no better, and that is all the patience there is.
    stage, _ = train(tmp_path, [0.1, 0.4, 0.3, 0.4, 0.5, 0.6], patience=2)
    assert stage.trainer.global_step == 8


def test_training_goes_on_while_evaluations_are_better(tmp_path: Path) -> None:
    stage, _ = train(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], patience=1)
    assert stage.trainer.global_step == 12


def test_shipped_configuration_keeps_the_best_beside_the_newest(workspace: Workspace) -> None:
    overrides = ["stage=teacher", "callbacks=best", "eval=[starter_zero_shot]", "callbacks.benchmarks.every_n_steps=2"]
    run = workspace.train(*overrides, "callbacks.best.monitor=starter_zero_shot/en/top1", "starter_split=test")
    scores = run.metrics("starter_zero_shot/en/top1")
    assert set(scores) == {2, 4}
    best = max(scores, key=lambda step: (scores[step], -step))
    names = sorted(file.name for file in (run.directory / "checkpoints").iterdir())
    kept = [f"best_step_{best:09d}.ckpt", "step_000000002.ckpt", "step_000000004.ckpt"]
    assert names == [name + suffix for name in kept for suffix in ("", ".json")]
    kept = torch.load(run.directory / "checkpoints" / names[0], weights_only=True)
    assert kept["global_step"] == best

"""Benchmarks during training: the same objects that the evaluation command runs, on the model as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console
from torch import Tensor

from altclip_train import distributed
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.encoder import AcrossRanks, Encoder
from altclip_train.evaluation.results import BenchmarkResult, result_tables
from altclip_train.sharding import whole_weights

logger = logging.getLogger(__name__)


class EvaluatedModule(Protocol):
    """What a stage offers to be evaluated."""

    image_tower_locked: bool  # image features of one picture are the same throughout training

    def evaluation_encoder(self) -> Encoder | None: ...


class BenchmarkCallback(L.Callback):
    """Runs benchmarks every ``every_n_steps`` optimizer steps and at the end of training.

    All ranks share the work: each encodes a part of the pictures and texts, once. Metrics are logged as
    ``<benchmark>/<language>/<metric>``; under these names Lightning's ModelCheckpoint can monitor them, and
    :class:`StopEarly`. With a locked image tower every picture is encoded once in the whole run.

    Args:
        benchmarks: by any name; their own ``name`` is the one in the log.
        every_n_steps: None evaluates at the end only.
    """

    def __init__(self, *, benchmarks: Mapping[str, Benchmark], every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1, or null for the end only")
        self.benchmarks = list(benchmarks.values())
        self.every_n_steps = every_n_steps
        self.results: list[BenchmarkResult] = []  # of the latest evaluation, the same on every rank
        self._image_features: dict[str, Tensor] = {}
        self.evaluated_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # A benchmark that cannot be read stops the run here rather than after hours of training.
        _first_on_rank_zero(self._prepare)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step > self.evaluated_step:
            self._evaluate(trainer, pl_module)
            for result in self.results:
                pl_module.log_dict(result.flat_metrics(), logger=False)  # for the callbacks that monitor them

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self.evaluated_step:
            self._evaluate(trainer, pl_module)
        if trainer.is_global_zero:
            console = Console()
            for table in result_tables({"": self.results}):
                console.print(table)

    def _prepare(self) -> None:
        for benchmark in self.benchmarks:
            benchmark.prepare()

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.evaluated_step = trainer.global_step
        module = cast(EvaluatedModule, pl_module)
        self.results = self._run(module)
        for result in self.results:
            for destination in trainer.loggers:
                destination.log_metrics(result.flat_metrics(), step=trainer.global_step)
                destination.save()
            logger.info("step %d, %s", trainer.global_step, result.summary())

    def _run(self, module: EvaluatedModule) -> list[BenchmarkResult]:
        encoder = module.evaluation_encoder()
        if encoder is None:
            return []
        encoder.image_cache = self._image_features if module.image_tower_locked else None
        shared = AcrossRanks(encoder)
        with whole_weights(cast(L.LightningModule, module)):
            return [result for benchmark in self.benchmarks for result in benchmark.evaluate(shared)]


class StopEarly(EarlyStopping):
    """Lightning's EarlyStopping, asked after each evaluation of the benchmarks instead of at the end of an epoch.

    Stands after the BenchmarkCallback. ``patience`` counts evaluations without an improvement.
    """

    def __init__(self, *, monitor: str, patience: int, mode: str = "max", min_delta: float = 0.0) -> None:
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode)
        self._asked_step = 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        benchmarks = [callback for callback in trainer.callbacks if isinstance(callback, BenchmarkCallback)]  # type: ignore[attr-defined]
        evaluated = max((callback.evaluated_step for callback in benchmarks), default=0)
        if evaluated == trainer.global_step > self._asked_step:
            self._asked_step = evaluated
            self._run_early_stopping_check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not asked: nothing new is known."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Not asked: nothing new is known."""


def _first_on_rank_zero(function: Callable[[], object]) -> None:
    """Runs ``function`` on rank 0, which may write what the others then read; then on them."""
    for turn in (True, False):
        distributed.on_every_rank(lambda turn=turn: function() if (distributed.rank() == 0) is turn else None)

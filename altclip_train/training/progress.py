"""Progress bar and throughput: loss, samples/s, real tokens/s, FLOP/s, time spent waiting for data, time left."""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import lightning as L
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from altclip_train.data.loaders import TrainLoader
from altclip_train.models.flops import peak_flops
from altclip_train.stages import ContrastiveLearning, TeacherLearning
from altclip_train.types import ImageTextBatch, TextPairBatch


class Throughput(L.Callback):
    """Logs samples/s, real tokens/s and model TFLOP/s of all ranks, and the share of time spent waiting for data.

    FLOPs are those of real tokens and patches: what is cached, padded or computed a second time does not count. On a
    device whose peak is known, `mfu` is their share of it.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"trainer.log_every_n_steps={every_n_steps}: expected at least 1")
        self.every_n_steps = every_n_steps
        self._since = time.perf_counter()
        self._samples = self._tokens = 0
        self._flops: int | torch.Tensor = 0
        self._waited = 0.0  # what the loader had counted when this stretch of steps began

    def on_train_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        *_: Any,
    ) -> None:
        self._samples += len(batch.keys)
        self._tokens += real_tokens(batch)
        self._flops = self._flops + cast(TeacherLearning | ContrastiveLearning, pl_module).training_flops(batch)
        if trainer.global_step % self.every_n_steps == 0:
            now, waited = time.perf_counter(), cast(TrainLoader, trainer.train_dataloader).seconds_waited
            seconds, flops = now - self._since, float(self._flops)
            device = pl_module.device
            peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
            pl_module.log_dict(
                {
                    **({} if peak is None else {"throughput/mfu": flops / seconds / peak}),
                    "throughput/tflops": flops * trainer.world_size / seconds / 1e12,
                    "throughput/samples_per_second": self._samples * trainer.world_size / seconds,
                    "throughput/tokens_per_second": self._tokens * trainer.world_size / seconds,
                    "throughput/data_wait": (waited - self._waited) / seconds,
                }
            )
            self._since, self._waited = now, waited
            self._samples = self._tokens = 0
            self._flops = 0


def real_tokens(batch: TextPairBatch | ImageTextBatch) -> int:
    """Text tokens that the trained tower reads in this batch; there is no padding to leave out."""
    packed = batch.student if isinstance(batch, TextPairBatch) else batch.text
    return len(packed.input_ids)


class TrainingProgress(L.Callback):
    """A bar over the whole run on a terminal, a plain line every ``seconds_between_lines`` elsewhere."""

    def __init__(self, *, seconds_between_lines: float) -> None:
        self.seconds_between_lines = seconds_between_lines
        self._progress: Progress | None = None
        self._started = self._last_line = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._started = self._last_line = time.perf_counter()
        self._first_step = trainer.global_step
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "training", total=_total_steps(trainer), completed=trainer.global_step, numbers=""
            )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=trainer.global_step, numbers=_numbers(trainer))
            return
        now, total = time.perf_counter(), _total_steps(trainer)
        if now - self._last_line >= self.seconds_between_lines or trainer.global_step == total:
            self._last_line = now
            per_step = (now - self._started) / max(1, trainer.global_step - self._first_step)
            left = f"{(total - trainer.global_step) * per_step:.0f} s left"
            print(
                f"step {trainer.global_step}/{total}  {_numbers(trainer)}  {left}",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, *_: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _total_steps(trainer: L.Trainer) -> int:
    return int(trainer.estimated_stepping_batches)


def _numbers(trainer: L.Trainer) -> str:
    shown = {
        "train/loss": "loss {:.4f}",
        "throughput/samples_per_second": "{:.0f} samples/s",
        "throughput/tokens_per_second": "{:.0f} tokens/s",
        "throughput/data_wait": "data wait {:.0%}",
    }
    metrics = trainer.callback_metrics
    return "  ".join(text.format(float(metrics[name])) for name, text in shown.items() if name in metrics)

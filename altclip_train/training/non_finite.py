"""Steps whose loss or gradients are not finite are left out, by all ranks together, and limited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from altclip_train import distributed
from altclip_train.adamw import gradient_values
from altclip_train.training.saving import Checkpoints

FILE = "non_finite.jsonl"


class _Step(NamedTuple):
    number: int
    values: Tensor  # (3,) on the CPU: 1 where the step was left out, loss, norm of the gradients
    arrived: torch.cuda.Event | None
    keys: Sequence[str]


class NonFiniteGuard(L.Callback):
    """Leaves out what would make the weights NaN, lists its samples, and stops a run that does nothing else.

    The optimizer's state stays as it is; schedule and data go on. A fused optimizer leaves the step out on the device,
    and the host reads of it one step later: it never waits. Any other optimizer costs a read in each step.

    Args:
        directory: of ``non_finite.jsonl``: step, rank, loss, norm of the gradients, sample keys.
        max_in_a_row: the run stops with ValueError after so many steps.
    """

    def __init__(self, *, directory: str, max_in_a_row: int) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"callbacks.non_finite.max_in_a_row={max_in_a_row}: expected at least 1")
        self.path = Path(directory) / FILE
        self.max_in_a_row = max_in_a_row
        self.skipped = self._in_a_row = 0
        self._pending: _Step | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        self._loss = loss.detach().float()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:  # noqa: ARG002
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        own_parts = [_own_part(gradient_values(p)) for p in parameters]
        norm = get_total_norm(own_parts)
        finite = norm.isfinite() & self._loss.isfinite()
        bad = distributed.all_reduce_max((~finite).float())
        sharded = any(isinstance(p.grad, DTensor) for p in parameters)
        if getattr(optimizer, "_step_supports_amp_scaling", False) and trainer.scaler is None and not sharded:
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bad:
            for parameter in parameters:
                parameter.grad = None
        self._values = torch.stack([bad, self._loss.to(bad.device), norm.float()])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self._look_at_pending(trainer)
        arrived = None
        if self._values.is_cuda:
            values, arrived = self._values.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        else:
            values = self._values
        self._pending = _Step(trainer.global_step, values, arrived, batch.keys)
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._look_at_pending(trainer)
        if trainer.is_global_zero and self.skipped:
            print(f"{self.skipped} steps were left out: loss or gradients were not finite; {self.path} lists them")

    def _look_at_pending(self, trainer: L.Trainer) -> None:
        step, self._pending = self._pending, None
        if step is None:
            return
        if step.arrived is not None:
            step.arrived.synchronize()
        bad, loss, norm = step.values.tolist()
        if not bad:  # the same on every rank, as everything below
            self._in_a_row = 0
            return
        self.skipped += 1
        self._in_a_row += 1
        parts = distributed.all_gather_objects((str(loss), str(norm), list(step.keys)))
        if trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                for rank, (of_loss, of_gradients, keys) in enumerate(parts):
                    entry = {"step": step.number, "rank": rank, "loss": of_loss, "gradient_norm": of_gradients}
                    file.write(json.dumps({**entry, "keys": keys}, ensure_ascii=False) + "\n")
            print(f"warning: step {step.number} is left out: loss {parts[0][0]}, norm of the gradients {parts[0][1]}")
        if self._in_a_row >= self.max_in_a_row:
            saved = [c.newest for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
            raise ValueError(
                f"loss or gradients were not finite in {self._in_a_row} steps in a row, up to step {step.number}; "
                f"{self.path} lists their samples. The weights of the last checkpoint are good: {saved and saved[0]}. "
                "A lower stage.optimizer.lr or trainer.precision=32-true is the usual cure"
            )


def _own_part(gradient: Tensor) -> Tensor:
    """What this rank holds of a sharded gradient; any other as it is."""
    to_local = getattr(gradient, "to_local", None)
    return gradient if to_local is None else to_local()

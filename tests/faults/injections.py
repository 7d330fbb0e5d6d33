"""Callbacks that bring about what goes wrong, at a step and on a rank of one's choice."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from altclip_train.adamw import gradient_values


class Injection(L.Callback):
    """Something at the beginning of steps."""

    def __init__(self, *, steps: Sequence[int], rank: int = 0) -> None:
        self.steps, self.rank = list(steps), rank

    def at(self, trainer: L.Trainer) -> bool:
        return trainer.global_rank == self.rank and trainer.global_step in self.steps


class Send(Injection):
    """A signal to this process."""

    def __init__(self, *, signal: int, steps: Sequence[int], rank: int = 0) -> None:
        super().__init__(steps=steps, rank=rank)
        self.signal = signal

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.at(trainer):
            os.kill(os.getpid(), self.signal)


class Sleep(Injection):
    """A rank that hangs."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.at(trainer):
            time.sleep(600)


class Raise(Injection):
    """An error that the package does not explain."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.at(trainer):
            raise RuntimeError("injected")


class Exit(Injection):
    """A library that ends its process."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.at(trainer):
            os._exit(3)


class Poison(Injection):
    """A gradient that is not finite, after the ranks have averaged theirs: the last, or, `by_rows`, of word vectors."""

    def __init__(self, *, steps: Sequence[int], rank: int = 0, by_rows: bool = False) -> None:
        super().__init__(steps=steps, rank=rank)
        self.by_rows = by_rows

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.at(trainer):
            with_gradient = [p for p in pl_module.parameters() if p.grad is not None]
            chosen = [p for p in with_gradient if p.grad.is_sparse] if self.by_rows else with_gradient
            gradient_values(chosen[-1]).view(-1)[0] = torch.inf


class PoisonWeights(Injection):
    """A weight that is not finite, from which a loss comes that is not finite."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:  # type: ignore[override]
        if self.at(trainer):
            weights = [p for p in pl_module.parameters() if p.requires_grad]
            weights[-1].data.view(-1)[0] = torch.nan


def inject(kind: str, steps: Sequence[int], **options: int | bool) -> str:
    """The override that adds an injection to a run."""
    values = "".join(f", {name}: {value}" for name, value in options.items())
    return f"+callbacks.inject={{_target_: {__name__}.{kind}, steps: {list(steps)}{values}}}"

"""Warnings about a training that runs, and goes wrong."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import lightning as L

from altclip_train.stages.contrastive import MAX_LOGIT_SCALE


class Alarms(L.Callback):
    """Looks at what was logged, and prints one line for each thing that begins to go wrong.

    Args:
        every_n_steps: how often metrics are logged.
        loss_spike: how many times the median of the last 20 logged losses is a spike.
        collapse: share of the teacher's spread over texts below which the student gives all texts the same vector.
        collapse_after_steps: before that, a student from random weights may.
    """

    def __init__(self, *, every_n_steps: int, loss_spike: float, collapse: float, collapse_after_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.loss_spike, self.collapse, self.collapse_after_steps = loss_spike, collapse, collapse_after_steps
        self._losses: deque[float] = deque(maxlen=20)
        self._raised: set[str] = set()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero or trainer.global_step % self.every_n_steps:
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        step = trainer.global_step
        if (loss := logged.get("train/loss")) is not None and math.isfinite(loss):
            usual = statistics.median(self._losses) if len(self._losses) >= 5 else math.inf
            text = f"the loss is {loss:.4g}, the median of the last {len(self._losses)} logged ones {usual:.4g}"
            self._raise_if(loss > self.loss_spike * usual, "loss spike", step, text)
            self._losses.append(loss)
        if (scale := logged.get("train/logit_scale")) is not None:
            text = "logit_scale stands at its limit of 100; a lower stage.optimizer.lr is the usual cure"
            self._raise_if(scale > 0.9999 * math.exp(MAX_LOGIT_SCALE), "logit_scale", step, text)
        if (spread := logged.get("train/spread")) is not None:
            text = f"the student's vectors of different texts differ by {spread:.1%} of what the teacher's do"
            collapsed = spread < self.collapse and step >= self.collapse_after_steps
            self._raise_if(collapsed, "collapse", step, text)

    def _raise_if(self, wrong: bool, name: str, step: int, text: str) -> None:
        """Print when it begins; it may begin again."""
        if wrong and name not in self._raised:
            print(f"warning: step {step}: {name}: {text}")
        self._raised = self._raised | {name} if wrong else self._raised - {name}

"""A run that stands still says where, and ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Any

import lightning as L

from altclip_train.training.rank_failures import End, RankFailures

EXIT_CODE = 124  # as timeout(1)
SECONDS_TO_REPORT = 5.0  # for the other ranks: a launcher ends them all once the first is gone


class Watchdog(L.Callback):
    """Ends this process with code 124 when it has done no step for ``seconds``, after the stacks of its threads.

    Every rank has its own: when one of them waits for ever, so do the others, and each says where. Evaluation during
    training counts as one step.
    """

    def __init__(self, *, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError(f"callbacks.watchdog.seconds={seconds}: expected more than 0")
        self.seconds = seconds
        self._stopped = threading.Event()
        self._last = (time.monotonic(), 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._beat(trainer)
        self._stopped.clear()
        threading.Thread(target=self._watch, args=(trainer,), name="watchdog", daemon=True).start()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._beat(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._beat(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._beat(trainer)

    def on_train_end(self, *_: Any) -> None:
        self._stopped.set()

    def on_exception(self, *_: Any) -> None:
        self._stopped.set()

    def _beat(self, trainer: L.Trainer) -> None:
        self._last = (time.monotonic(), trainer.global_step)

    def _watch(self, trainer: L.Trainer) -> None:
        while not self._stopped.wait(min(1.0, self.seconds / 20)):
            since, step = self._last
            if time.monotonic() - since > self.seconds:
                break
        else:
            return
        sys.stdout.flush()
        cause = f"no step for {self.seconds:g} s after step {step}; callbacks.watchdog.seconds allows no more"
        print(f"\nerror: rank {trainer.global_rank}: {cause}. Its threads are at:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RankFailures):
                callback.say(End(trainer.global_rank, cause))
        time.sleep(SECONDS_TO_REPORT)
        os._exit(EXIT_CODE)

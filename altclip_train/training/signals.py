"""SIGTERM, SIGUSR1 and Ctrl-C at any rank: all ranks finish the step, save one checkpoint, and exit as signals do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from altclip_train import distributed
from altclip_train.training.saving import Checkpoints

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A launcher may pass on what the terminal has sent to every process already.
SECONDS_TO_BE_ANOTHER = 1.0


class StoppedBySignal(SystemExit):
    """Ends the process with 128 + the signal's number, as shells and schedulers know it."""


class Signals(L.Callback):
    """Stops a run on a signal after the step in which all ranks know of it.

    Lightning's own handlers talk to the other ranks while they handle the signal, which waits for ever when only one
    rank got it, and end with exit code 0 and no checkpoint. A second Ctrl-C ends the process at once.

    Args:
        requeue: under SLURM, put the job into the queue again after SIGUSR1 (``sbatch --signal=USR1@120``).
    """

    def __init__(self, *, requeue: bool) -> None:
        self.requeue = requeue
        self._received = self._agreed = 0
        self._received_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._any_rank: distributed.Agreement | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._any_rank = distributed.Agreement()
        # Lightning's way to ask in each step, which waits for the device; ours does not.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._before = {caught: signal.signal(caught, self._receive) for caught in CAUGHT}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        assert self._any_rank is not None
        self._agreed = self._any_rank.highest(self._received)
        if self._agreed:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Checkpoints):
                    callback.save(trainer)
                    callback.finish(trainer)

    # Whichever comes next, after Lightning has logged the step and done the validation that belongs to it.

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._exit_if_agreed(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._exit_if_agreed(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._restore()
        if self._any_rank is None:  # resumed at its last step
            return
        self._any_rank.highest(self._received)
        self._agreed = self._any_rank.highest(self._received)
        self._exit_if_agreed(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again = self._received == number == signal.SIGINT
        if again and time.monotonic() - self._received_at > SECONDS_TO_BE_ANOTHER:
            raise KeyboardInterrupt
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: the run saves and stops after this step; Ctrl-C twice stops at once\n".encode())

    def _restore(self) -> None:
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
        self._before = {}

    def _exit_if_agreed(self, trainer: L.Trainer) -> None:
        if not self._agreed:
            return
        if self.requeue and self._agreed == signal.SIGUSR1 and trainer.is_global_zero:
            requeue_slurm_job()
        # Lightning kills all processes that it has started when one of them ends with a code: rank 0 speaks for them.
        environment = trainer._accelerator_connector.cluster_environment
        silent = isinstance(environment, LightningEnvironment) and not trainer.is_global_zero
        raise StoppedBySignal(0 if silent else 128 + self._agreed)


def requeue_slurm_job() -> None:
    """Ask SLURM to run this job again; one line says how it went. Outside of SLURM there is nothing to ask."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
        failure = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    print(f"SLURM job {job} is queued again" if failure is None else f"warning: scontrol requeue {job}: {failure}")

"""When a run saves, which checkpoints it keeps, and what it does when the disk does not take one."""

from __future__ import annotations

import errno
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection

from altclip_train import distributed
from altclip_train.errors import Unreachable
from altclip_train.training.checkpoints import INCOMPLETE
from altclip_train.training.manifest import checkpoints, manifest_of, problem, write_manifest
from altclip_train.training.mirror import Mirror


class Checkpoints(Checkpoint):
    """Saves every so many steps and minutes, at the end, and when a signal stops the run; keeps the newest.

    Older ones go only after a newer one was verified. When the disk does not take one, training goes on with those
    that are there, and stops after ``max_failures`` in a row.

    Args:
        directory: where they go, as ``step_<step>.ckpt``.
        every_n_minutes: of the time since the last one; None: by steps alone.
        keep: how many; None: all.
        in_background: training goes on while one is written, from a copy of the state in the host's memory. All else
            holds as it does without, one step later; a second one waits for the first.
        mirror: url below which each one is copied once it is verified; None: nowhere. Training goes on without a copy.
    """

    def __init__(
        self,
        *,
        directory: str,
        every_n_train_steps: int,
        every_n_minutes: float | None,
        keep: int | None,
        max_failures: int,
        in_background: bool,
        mirror: str | None,
    ) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"callbacks.checkpoints.every_n_train_steps={every_n_train_steps}: expected at least 1")
        if keep is not None and keep < 1:
            raise ValueError(f"callbacks.checkpoints.keep={keep}: expected at least 1, or null for all")
        self.directory = Path(directory)
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.keep, self.max_failures, self.in_background = keep, max_failures, in_background
        self.mirror = Mirror(self.directory.parent, mirror) if mirror is not None else None
        self.newest: Path | None = None  # that verified
        self._failures = self._tried_step = 0
        self._tried_at = time.monotonic()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[Path, Future[str | None] | None] | None = None  # the future on rank 0

    def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self.in_background and isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "callbacks.checkpoints.in_background=true does not go with strategy=fsdp2, whose checkpoints all ranks "
                "write together: leave out one of them"
            )
        if trainer.is_global_zero:  # what a killed run left: as large as a checkpoint, and of no use
            for path in self.directory.glob(f"*{INCOMPLETE}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if self.mirror is not None:
                self.mirror.begin()
                print(f"mirror: {self.mirror.url}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._time_is_up, self._is_written = distributed.Agreement(), distributed.Agreement()
        self._tried_at, self._tried_step = time.monotonic(), trainer.global_step
        resumed = trainer.ckpt_path
        self.newest = Path(resumed) if resumed else None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._writing is not None:
            future = self._writing[1]
            done = self._tried_step if future is not None and future.done() else 0
            if self._is_written.highest(done) == self._tried_step:
                self.finish(trainer)
        due = trainer.global_step % self.every_n_train_steps == 0
        if self.every_n_minutes is not None:
            minutes = (time.monotonic() - self._tried_at) / 60
            # Numbered by the step that the minutes are counted from: in the meantime there may have been another.
            wish = self._tried_step + 1
            due |= self._time_is_up.highest(wish if minutes >= self.every_n_minutes else 0) == wish
        # Here rather than in on_train_end: Lightning cannot train on from a checkpoint that it took there.
        last = trainer.should_stop or trainer.global_step >= trainer.estimated_stepping_batches
        if due or last:
            self.save(trainer)
        if last:
            self.finish(trainer)

    def on_exception(self, *_: Any) -> None:
        if self._writing is not None and (future := self._writing[1]) is not None:
            future.exception()  # before another process may train in the directory

    def save(self, trainer: L.Trainer) -> None:
        """On every rank, in the same step. Raises OSError after too many failures in a row."""
        if self._tried_step == trainer.global_step:
            return
        self.finish(trainer)
        self._tried_at, self._tried_step = time.monotonic(), trainer.global_step
        path = self.directory / f"step_{trainer.global_step:09d}.ckpt"
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if not self.in_background:
            self._conclude(trainer, path, self._write(trainer, state, path))
        elif trainer.is_global_zero:
            copy = apply_to_collection(state, torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
            self._writing = path, self._writer.submit(self._write, trainer, copy, path)
        else:
            self._writing = path, None

    def finish(self, trainer: L.Trainer) -> None:
        """On every rank, in the same step: wait for what is being written. Raises what :meth:`save` raises."""
        if self._writing is not None:
            path, future = self._writing
            self._writing = None
            self._conclude(trainer, path, future.result() if future is not None else None)

    def _write(self, trainer: L.Trainer, state: dict[str, Any], path: Path) -> str | None:
        """Why it could not be written."""
        # trainer.save_checkpoint would leave the other ranks at a barrier when one cannot write.
        try:
            trainer.strategy.save_checkpoint(state, path)
            if trainer.is_global_zero:
                if not manifest_of(path).exists():  # a strategy may write directories by itself
                    write_manifest(path)
                failure = problem(path, hashes=False)  # they were read back a moment ago
                if failure is None and self.mirror is not None:
                    self._copy(self.mirror, path)
                return failure
        except OSError as error:
            return str(error)
        return None

    def _copy(self, mirror: Mirror, path: Path) -> None:
        try:
            mirror.copy(path, self.keep)
        except (OSError, ValueError, Unreachable) as error:
            print(f"warning: {path.name} is not copied to {mirror.url}: {error}; training goes on")

    def _conclude(self, trainer: L.Trainer, path: Path, failure: str | None) -> None:
        failures = [text for text in distributed.all_gather_objects(failure) if text]
        if failures:
            self._count_failure(trainer, path, failures[0])
            return
        self._failures, self.newest = 0, path
        if self.keep is not None:
            self._remove_older(trainer, path, self.keep)

    def _count_failure(self, trainer: L.Trainer, path: Path, reason: str) -> None:
        self._failures += 1
        text = (
            f"checkpoint {path.name} was not written ({self._failures} in a row): {reason}. "
            f"The newest good one: {self.newest or 'none'}"
        )
        if self._failures >= self.max_failures:
            raise OSError(errno.ENOSPC, text)
        if trainer.is_global_zero:
            print(f"warning: {text}; training goes on")

    def _remove_older(self, trainer: L.Trainer, newest: Path, keep: int) -> None:
        """Also later ones: they did not verify, or this run would have gone on from them."""
        names = [path for path in checkpoints(self.directory) if path.name <= newest.name]
        for path in checkpoints(self.directory):
            if path not in names[-keep:]:
                trainer.strategy.remove_checkpoint(path)

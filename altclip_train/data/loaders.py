"""Training loaders that go on where a run is: the position is asked for when a pass begins."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch


class TrainLoader(DataLoader):
    """Each pass starts at the position that the datamodule knows, after ``seek`` was told of it.

    Lightning warns about loaders that cannot tell their state; this one's lives in the datamodule, since
    Lightning saves a loader's state only after it fetched a batch ahead.
    """

    def __init__(
        self, dataset: Dataset[Any], *, seek: Callable[[int], None], position: Callable[[], int], **options: Any
    ):
        self._seek, self._position = seek, position
        self.seconds_waited = 0.0  # for batches, in total
        # A generator of its own: a pass draws a seed, and a resumed run begins a pass where an unbroken one does not.
        own: dict[str, Any] = {"generator": torch.Generator(), "worker_init_fn": ignore_signals}
        super().__init__(dataset, collate_fn=already_a_batch, **own, **options)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that this runs when the first batch is asked for: Lightning asks for the iterator
        # before it has restored the step of a checkpoint.
        self._seek(self._position())
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: see the class."""


class PlannedLoader(TrainLoader):
    """Batches of planned positions, to the end of the epoch in which a pass starts."""

    def __init__(self, dataset: Dataset[Any], *, sampler: PlannedBatchSampler, **options: Any):
        super().__init__(dataset, seek=sampler.seek, batch_sampler=sampler, **options)


def ignore_signals(worker: int) -> None:  # noqa: ARG001
    """Terminals and schedulers send signals to all processes; the training decides when its loaders end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)

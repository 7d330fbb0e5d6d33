"""Batches of the plan's stream: which rank reads which positions, and where a pass begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler

from altclip_train.data.plan import Plan


class PlannedBatchSampler(Sampler[list[int]]):
    """One rank's positions, in the plan's stream, of each global batch of an epoch.

    With N = epoch_samples // global_batch_size, epoch e is the global batches [e * N, (e + 1) * N); rank r of
    W takes places [G * r // W, G * (r + 1) // W) of each batch of G. A pass begins at the position last given
    to ``seek`` and ends with that epoch. ``len`` is N all the same, since Lightning counts the batches of a
    resumed epoch from its beginning.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        global_batch_size: int,
        rank: int,
        world_size: int,
        epoch_samples: int | None = None,
    ) -> None:
        self.first, self.last = own_places(global_batch_size, rank, world_size)
        samples = plan.epoch_samples if epoch_samples is None else epoch_samples
        self.batches = samples // global_batch_size
        if self.batches < 1:
            raise ValueError(
                f"an epoch of {samples} samples has no whole batch of {global_batch_size}: "
                f"lower data.global_batch_size to at most {samples} or raise data.epoch_samples"
            )
        self.global_batch_size = global_batch_size
        self.begin = 0

    def seek(self, position: int) -> None:
        """Let the next pass begin at ``position``. Raises ValueError unless a global batch begins there."""
        if position < 0 or position % self.global_batch_size:
            raise ValueError(f"position={position} is no multiple of data.global_batch_size={self.global_batch_size}")
        self.begin = position // self.global_batch_size

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        end = (self.begin // self.batches + 1) * self.batches
        for batch in range(self.begin, end):
            start = batch * self.global_batch_size
            yield list(range(start + self.first, start + self.last))


def own_places(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First place of a rank in every global batch, and the one after its last. Raises ValueError if it has none."""
    if not 0 <= rank < world_size <= global_batch_size:
        raise ValueError(
            f"rank {rank} of world_size {world_size} with data.global_batch_size={global_batch_size}: "
            "each rank needs at least one sample of every batch"
        )
    return global_batch_size * rank // world_size, global_batch_size * (rank + 1) // world_size


def already_a_batch(batch: Any) -> Any:
    """The ``collate_fn`` of datasets whose ``__getitems__`` makes whole batches.

    It is here, and not beside the loaders, so that loader processes need not import Lightning.
    """
    return batch

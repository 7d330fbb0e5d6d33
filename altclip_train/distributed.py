"""The only module that talks to torch.distributed, but for sharding.py and the checkpoints of sharded weights.

All functions take an optional process group; without an initialised process group they act as one rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None
T = TypeVar("T")


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size(group: Group = None) -> int:
    return dist.get_world_size(group) if is_initialized() else 1


def rank(group: Group = None) -> int:
    return dist.get_rank(group) if is_initialized() else 0


def barrier(group: Group = None) -> None:
    if is_initialized():
        dist.barrier(group)


def all_reduce_sum(tensor: Tensor, group: Group = None) -> Tensor:
    """Sum of ``tensor`` over ranks, as a new tensor without gradient."""
    result = tensor.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(result, group=group)
    return result


def all_reduce_max(tensor: Tensor, group: Group = None) -> Tensor:
    """Maximum of ``tensor`` over ranks, as a new tensor without gradient."""
    result = tensor.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(result, dist.ReduceOp.MAX, group=group)
    return result


def row_counts(rows: int, device: torch.device, group: Group = None) -> list[int]:
    """Number of rows that each rank holds; ranks may hold unequal numbers."""
    if world_size(group) == 1:
        return [rows]
    counts = torch.empty(world_size(group), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(counts, torch.tensor([rows], device=device), group=group)
    return counts.tolist()


def all_gather_rows(tensor: Tensor, counts: list[int], group: Group = None) -> Tensor:
    """Concatenate each rank's rows in rank order: (B, ...) -> (G, ...), without gradient.

    ``counts`` are the ranks' row counts from :func:`row_counts`. Shorter ranks are padded for the
    collective, since NCCL gathers equal shapes only, and the padding is cut off again.
    """
    tensor = tensor.detach()
    if len(counts) == 1:
        return tensor
    longest = max(counts)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    gathered = tensor.new_empty(len(counts) * longest, *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, padded, group=group)
    if min(counts) == longest:
        return gathered
    return torch.cat([gathered[i * longest : i * longest + n] for i, n in enumerate(counts)])


def broadcast_object(value: Any, group: Group = None) -> Any:
    """Rank 0's ``value`` on every rank."""
    if world_size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def all_gather_objects(value: Any, group: Group = None) -> list[Any]:
    """Every rank's ``value``, in rank order, on every rank. It is pickled: for what the ranks themselves made."""
    if world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor whole on every rank, by a collective call; any other as it is."""
    if is_initialized():
        from torch.distributed.tensor import DTensor  # a second to import, and only there in a process group

        if isinstance(tensor, DTensor):
            return tensor.full_tensor()
    return tensor


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every rank holds whole, the part that this one has of ``like``. Nothing is sent."""
    if is_initialized():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(like, DTensor):
            return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def collective_device(group: Group = None) -> torch.device:
    """Where tensors must lie to be gathered."""
    if is_initialized() and dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_every_rank(function: Callable[[], T], group: Group = None) -> T:
    """What ``function`` returns here. When it raises on any rank, every rank raises, so that none waits for another."""
    value: T | None = None
    error: Exception | None = None
    try:
        value = function()
    except Exception as caught:
        error = caught
    failures = all_gather_objects(repr(error) if error else None, group)
    if error is not None:
        raise error
    for place, failure in enumerate(failures):
        if failure is not None:
            raise RuntimeError(f"rank {place} failed with {failure}")
    return cast(T, value)


class _GlobalMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_sum: Tensor, local_count: int, group: Group) -> Tensor:
        totals = all_reduce_sum(torch.stack([local_sum, local_sum.new_full((), float(local_count))]), group)
        ctx.scale = world_size(group) / totals[1]
        return totals[0] / totals[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return grad_outputs[0] * ctx.scale, None, None


def global_mean(local_sum: Tensor, local_count: int, group: Group = None) -> Tensor:
    """Mean over all ranks of what each summed up locally; ranks may hold unequal counts.

    Every rank returns the global value. Its backward yields world_size x d(mean)/d(local), so that the
    average which DDP and FSDP take over ranks is the exact gradient of the global mean.
    """
    return _GlobalMean.apply(local_sum, local_count, group)


class Agreement:
    """The highest of the numbers that the ranks bring, known one step later to all of them; on one rank at once.

    Nobody waits: the numbers travel between hosts while the next step is computed, and never touch a device. Made by
    every rank at the same point of a run, and asked by every rank in every step.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._number = torch.zeros(1, dtype=torch.int64)
        self._exchange: dist.Work | None = None

    def highest(self, number: int) -> int:
        """Bring ``number``; the highest of those that were brought the last time, 0 at the first."""
        if self._group is None:
            return number
        if self._exchange is not None:
            self._exchange.wait()
        earlier = int(self._number)
        self._number = torch.tensor([number])
        self._exchange = dist.all_reduce(self._number, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return earlier

"""Batches that do not fit in memory: a few texts or pictures at a time, with the gradient of the whole batch.

Reference: GradCache (arXiv:2101.06983). Features of the whole batch are computed without a graph, the loss is that of
all of them, and each micro-batch is computed again, with the same random numbers, when its gradient is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from altclip_train.types import PackedTokens

Inputs = TypeVar("Inputs", Tensor, PackedTokens)


def encode_in_micro_batches(encode: Callable[[Inputs], Tensor], inputs: Inputs, size: int | None) -> Tensor:
    """`encode(inputs)`, (B, D), holding the graph of at most `size` texts or pictures at a time; None: of all."""
    if size is None:
        return encode(inputs)
    parts = _split(inputs, size)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in parts])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def check_micro_batch(size: int | None) -> int | None:
    """Raise ValueError for a size below 1."""
    if size is not None and size < 1:
        raise ValueError(f"stage.micro_batch={size}: expected at least 1, or null for the whole batch at once")
    return size


def _split(inputs: Inputs, size: int) -> list[Inputs]:
    if isinstance(inputs, Tensor):
        return list(inputs.split(size))
    ends = inputs.cumulative_lengths
    parts = []
    for first in range(0, len(ends) - 1, size):
        own = ends[first : first + size + 1]
        begin, end = int(own[0]), int(own[-1])
        parts.append(PackedTokens(inputs.input_ids[begin:end], own - begin, int(own.diff().max())))
    return parts

"""Frozen parts of a stage: never trained, never in training mode, never written to a checkpoint, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from altclip_train.stages.micro_batches import Inputs
from altclip_train.types import CachedVectors


def frozen_vectors(
    encode: Callable[[Inputs], Tensor],
    inputs: Inputs | None,
    cached: CachedVectors | None,
    keep: Callable[[Sequence[tuple[int, int]], Tensor], Tensor],
) -> Tensor:
    """(B, W): a frozen tower's cached vectors, and those of `inputs`, which the cache is given to `keep`."""
    with torch.no_grad():
        computed = None if inputs is None else encode(inputs)
    if cached is None:
        assert computed is not None, "a batch has inputs where it has no cached vectors"
        return computed
    parts = [] if cached.vectors is None else [cached.vectors.float()]
    if computed is not None:
        parts.append(keep(cached.rows, computed))
    # Cached ones first, then the others: back to the order of the batch.
    return torch.cat(parts)[torch.cat([cached.places, cached.missing]).argsort()]


def keep_in_eval_mode(modules: Iterable[nn.Module]) -> None:
    """To be called at the end of a stage's ``train()``, which Lightning calls to and fro."""
    for module in modules:
        module.eval()


def drop_from_checkpoint(checkpoint: dict[str, Any], prefixes: Iterable[str]) -> None:
    """Remove the weights below ``prefixes``: they come from the CLIP directory that the stage starts from."""
    state = checkpoint["state_dict"]
    for key in [k for k in state if k.startswith(tuple(prefixes))]:
        del state[key]


def restore_in_checkpoint(checkpoint: dict[str, Any], module: nn.Module, prefixes: Iterable[str]) -> None:
    """Put the module's own frozen weights back, so that loading stays strict about every other key."""
    own = {k: v for k, v in module.state_dict().items() if k.startswith(tuple(prefixes))}
    checkpoint["state_dict"].update(own)

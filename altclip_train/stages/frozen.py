"""Frozen parts of a stage: never trained, never in training mode, never written to a checkpoint, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def parts_of(model: nn.Module, names: Iterable[str]) -> Iterator[nn.Module | nn.Parameter]:
    """Parts of a model by their dotted names, as ``stage.locked`` has them. Raises ValueError for one it lacks."""
    for name in names:
        part: nn.Module | nn.Parameter = model
        for step in name.split("."):
            inner: dict[str, nn.Module | nn.Parameter] = {}
            if isinstance(part, nn.Module):
                inner = {**dict(part.named_children()), **dict(part.named_parameters(recurse=False))}
            if step not in inner:
                raise ValueError(
                    f"stage.locked names {name!r}: {type(part).__name__} has no {step!r}; its parts are {sorted(inner)}"
                )
            part = inner[step]
        yield part


def keep_in_eval_mode(parts: Iterable[nn.Module | nn.Parameter]) -> None:
    """To be called at the end of a stage's ``train()``, which Lightning calls to and fro."""
    for part in parts:
        if isinstance(part, nn.Module):
            part.eval()


def drop_from_checkpoint(checkpoint: dict[str, Any], names: Iterable[str]) -> None:
    """Remove the weights of these parts: they come from the directories that the stage starts from."""
    state = checkpoint["state_dict"]
    for key in _keys_of(state, names):
        del state[key]


def restore_in_checkpoint(checkpoint: dict[str, Any], module: nn.Module, names: Iterable[str]) -> None:
    """Put the module's own frozen weights back, so that loading stays strict about every other key."""
    own = module.state_dict()
    checkpoint["state_dict"].update({key: own[key] for key in _keys_of(own, names)})


def _keys_of(state: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Keys of these parts, and of none whose name only begins alike."""
    below = tuple(f"{name}." for name in names)
    return [key for key in state if f"{key}.".startswith(below)]

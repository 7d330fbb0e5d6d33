"""Frozen parts of a stage: never trained, never in training mode, never written to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


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

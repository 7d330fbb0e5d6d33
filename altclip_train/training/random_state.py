"""Random numbers go on where a checkpoint was taken: what Lightning leaves out of one."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch

from altclip_train import distributed

KEY = "random_state"


class RandomState(L.Callback):
    """Keeps the state of every rank's random numbers in checkpoints: torch on CPU and device, Python, NumPy.

    Loaders draw from generators of their own, so nothing but the model moves them. With another number of ranks there
    is nothing to go on from, and the states are left as the seed made them.
    """

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        checkpoint[KEY] = distributed.all_gather_objects(_state())

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        states = checkpoint.get(KEY, [])
        self._restored = states[distributed.rank()] if len(states) == distributed.world_size() else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # Late, since what Lightning sets up after it has loaded a checkpoint may draw numbers too.
        if (state := getattr(self, "_restored", None)) is not None:
            _restore(state)


def _state() -> dict[str, Any]:
    """In plain values, which can be read without unpickling code."""
    generator, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (generator, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    generator, keys, *rest = state["numpy"]
    np.random.set_state((generator, keys.numpy().astype(np.uint32), *rest))

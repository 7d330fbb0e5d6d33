"""A training by Lightning's own parts, into which the same accidents are injected as into ours.

python -m tests.faults.stock_run DIRECTORY '{"max_steps": 5, "inject": {"kind": "Raise", "steps": [3]}}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.faults import injections


class Module(L.LightningModule):
    """One linear layer, with dropout; ``ballast`` floats make its checkpoints large."""

    def __init__(self, *, ballast: int = 0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))
        self.register_buffer("ballast", torch.zeros(ballast))
        self.losses: list[float] = []
        self.seen: list[float] = []

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.layer(batch).square().mean()
        self.losses.append(float(loss.detach()))
        self.seen.append(float(batch[0, 0]))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Loader:
    """Batches that are numbered, by a loader that keeps its place, and does not know its length."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.place += 1
            yield torch.full((4, 8), float(self.place))

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def trainer(directory: Path, *, callbacks: Sequence[L.Callback] = (), every: int = 1, **options: Any) -> L.Trainer:
    """A plain trainer that keeps last.ckpt."""
    saves = ModelCheckpoint(directory, every_n_train_steps=every, save_top_k=-1, save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", callbacks=[saves, *callbacks], max_epochs=-1, **quiet, **options)


def main() -> None:
    directory, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    callbacks = []
    if (inject := settings.pop("inject", None)) is not None:
        callbacks = [getattr(injections, inject.pop("kind"))(**inject)]
    module = Module(ballast=settings.pop("ballast", 0))
    if settings.get("devices", 1) > 1:
        # Lightning's own default is half an hour.
        settings["strategy"] = DDPStrategy(timeout=timedelta(seconds=settings.pop("group_seconds", 120)))
    trainer(directory, callbacks=callbacks, **settings).fit(module, DataLoader(torch.ones(100_000, 8), batch_size=1))


if __name__ == "__main__":
    main()

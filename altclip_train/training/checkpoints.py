"""Checkpoints that are either whole or absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames.

    Lightning writes through the system's temporary directory: on another file system its final move is a
    copy, and a kill or a full disk in the middle of it destroys the previous good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are written to a local directory")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        incomplete = target.with_name(f"{target.name}.incomplete")
        try:
            with incomplete.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(incomplete, target)
        finally:
            incomplete.unlink(missing_ok=True)
        sync_directory(target.parent)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            raise ValueError(f"{path} is a sharded checkpoint: resume with strategy=fsdp2")
        return super().load_checkpoint(path, *arguments, **options)


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

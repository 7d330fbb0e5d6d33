"""Checkpoints that are either whole or absent: how one is written, read and removed."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from altclip_train.training.manifest import manifest_of, sync_directory, write_manifest

INCOMPLETE = ".incomplete"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, reads back, renames, and writes the manifest last.

    Lightning writes through the system's temporary directory: on another file system its final move is a
    copy, and a kill or a full disk in the middle of it destroys the previous good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError when the disk does not take it; what was there before is then still there."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are written to a local directory")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(target, tensor_bytes(checkpoint))
        incomplete = target.with_name(f"{target.name}{INCOMPLETE}")
        try:
            _write(checkpoint, incomplete)
            manifest_of(target).unlink(missing_ok=True)
            os.replace(incomplete, target)
        finally:
            incomplete.unlink(missing_ok=True)
        sync_directory(target.parent)
        write_manifest(target)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        """As Lightning's, but code in a checkpoint is never run. Raises ValueError for a sharded one."""
        if Path(path).is_dir():
            raise ValueError(f"{path} is a sharded checkpoint: resume with strategy=fsdp2")
        if weights_only is False:
            raise ValueError(f"{path}: checkpoints are only read with weights_only=True")
        return super().load_checkpoint(path, map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """The manifest first, so that nobody trusts what is half removed."""
        manifest_of(Path(path)).unlink(missing_ok=True)
        super().remove_checkpoint(path)


def _write(checkpoint: dict[str, Any], file: Path) -> None:
    try:
        with file.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except RuntimeError as error:  # what torch makes of a write that fails
        raise OSError(errno.EIO, f"cannot be written: {str(error).partition(chr(10))[0]}", str(file)) from error
    try:  # the list of contents alone: tensors stay on the disk
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise TypeError(f"a checkpoint may hold tensors and plain values only: {error}") from error


def check_free_space(target: Path, needed: int) -> None:
    """Raise OSError when the disk has not 1.2 times the bytes that a checkpoint needs."""
    free = shutil.disk_usage(target.parent).free
    if free < 1.2 * needed:
        text = f"a checkpoint takes {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left"
        raise OSError(errno.ENOSPC, text, str(target))


def tensor_bytes(value: Any) -> int:
    """Of all tensors in nested mappings and sequences."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0

"""FSDP2 through Lightning, and checkpoints of which every rank writes its own part.

A checkpoint is a directory: tensors as torch.distributed.checkpoint writes them, which any number of ranks can read
again, and everything else in one file that rank 0 writes. It takes its name when it is whole; its manifest comes last.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from altclip_train import distributed
from altclip_train.sharding import whole_weights
from altclip_train.training.checkpoints import INCOMPLETE, check_free_space, tensor_bytes
from altclip_train.training.manifest import manifest_of, sync_directory, write_manifest

PRECISIONS = ("32-true", "bf16-mixed")
REST = "rest.pt"  # of a sharded checkpoint: what is no weight and no state of a weight
_MODEL = "state_dict."
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class FullyShardedStrategy(ModelParallelStrategy):
    """Every device of a node holds a part of the weights, gradients and optimizer state; each node holds a whole copy.

    The stage's `configure_model` says what is sharded.

    Args:
        precision: that of the trainer, which must be one of `PRECISIONS`.
    """

    def __init__(self, *, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={precision} does not go with strategy=fsdp2, which keeps float32 weights and has "
                f"no loss scaling: pass one of {', '.join(PRECISIONS)}, or strategy=auto"
            )
        # Lightning's names; by default its mesh has one row for each node, and the devices of a node as columns.
        super().__init__(data_parallel_size="auto", tensor_parallel_size="auto")

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def on_validation_start(self) -> None:
        self._whole_weights = whole_weights(self._module)  # ranks may have unequal numbers of batches
        self._whole_weights.__enter__()

    def on_validation_end(self) -> None:
        self._whole_weights.__exit__(None, None, None)

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self._module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return get_optimizer_state_dict(self._module, optimizer, options=_FLAT)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are written to a local directory")
        tensors, rest = _take_tensors(checkpoint)
        write_sharded(tensors, rest, Path(self.broadcast(str(filepath))))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ARG002 - nothing is ever unpickled
        path = Path(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            raise ValueError(f"{path} was written without strategy=fsdp2: resume with strategy=auto")
        reader = SafeReader(path)
        checkpoint = read_rest(path)
        weights = get_model_state_dict(self._module)
        states = [get_optimizer_state_dict(self._module, optimizer, options=_FLAT) for optimizer in self.optimizers]
        stored = reader.read_metadata().state_dict_metadata.keys()
        tensors, _ = _take_tensors({"state_dict": weights, "optimizer_states": states})
        frozen = {f"{_MODEL}{name}" for name, weight in self._module.named_parameters() if not weight.requires_grad}
        if wrong := (tensors.keys() ^ stored) - frozen:
            raise ValueError(
                f"{path} is of another model or optimizer: only one of them has {', '.join(sorted(wrong)[:5])}; "
                "resume with the configuration of the run, or start a new one"
            )
        load({name: tensors[name] for name in stored}, storage_reader=reader)
        checkpoint["state_dict"] = {name: weights[name] for name in weights if f"{_MODEL}{name}" in stored}
        checkpoint["optimizer_states"] = [
            {**kept, **{name: value for name, value in state.items() if isinstance(value, Tensor)}}
            for kept, state in zip(checkpoint["optimizer_states"], states, strict=True)
        ]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        self._module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self._module, optimizer, state, options=_FLAT)


def _take_tensors(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and optimizer tensors by the names that they have in the directory, and the checkpoint without them."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    rest["optimizer_states"] = []
    for number, state in enumerate(checkpoint.get("optimizer_states", [])):
        tensors |= {f"optimizer_{number}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
        rest["optimizer_states"].append({k: value for k, value in state.items() if not isinstance(value, Tensor)})
    return tensors, rest


def write_sharded(tensors: dict[str, Tensor], rest: dict[str, Any], target: Path) -> None:
    """Write a checkpoint directory, by all ranks together: it is whole and on disk, or not there.

    Raises OSError on every rank when one of them could not write.
    """
    incomplete = target.with_name(f"{target.name}{INCOMPLETE}")
    size = tensor_bytes(tensors)  # of the global tensors
    _on_rank_zero(lambda: _make_empty(incomplete, size))
    try:
        save(tensors, storage_writer=FileSystemWriter(incomplete))  # synced, file by file
    except CheckpointException as error:  # no Exception, and its message is all ranks' tracebacks
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"{target} could not be written: rank {rank} failed with {cause!r}") from error
    _on_rank_zero(lambda: _publish(rest, incomplete, target))


def _on_rank_zero(function: Callable[[], None]) -> None:
    """Raises OSError on every rank when it fails there, so that all of them count the same failure."""
    try:
        distributed.on_every_rank(lambda: function() if distributed.rank() == 0 else None)
    except RuntimeError as error:  # what torch makes of a write that fails, and what other ranks hear of it
        raise OSError(str(error)) from error


def _make_empty(directory: Path, size: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed here
    directory.mkdir(parents=True)
    check_free_space(directory, size)


def _publish(rest: dict[str, Any], incomplete: Path, target: Path) -> None:
    with (incomplete / REST).open("wb") as file:
        torch.save(rest, file)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(incomplete)
    manifest_of(target).unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(incomplete, target)
    sync_directory(target.parent)
    write_manifest(target)


def is_sharded(path: Path) -> bool:
    """Whether this is a sharded checkpoint."""
    return (path / REST).is_file()


def read_rest(directory: Path) -> dict[str, Any]:
    """What a sharded checkpoint holds beside tensors. Raises FileNotFoundError or ValueError that name it."""
    try:
        return torch.load(directory / REST, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{directory} is no sharded checkpoint: it has no {REST}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{directory / REST} is damaged: {str(error).strip().partition(chr(10))[0]}") from error


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The whole weights of a sharded checkpoint, read by one process."""
    reader = SafeReader(directory)
    tensors = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(_MODEL) and isinstance(stored, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is asked to be
        load(tensors, storage_reader=reader, no_dist=True)
    return {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items()}


class SafeReader(FileSystemReader):
    """Reads tensors, and metadata that is a pickle of a few known classes and nothing else."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        file = Path(self.path) / ".metadata"
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file.parent} is no sharded checkpoint: it has no {file.name}") from error
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{file} is damaged or no metadata of a sharded checkpoint: {error}") from error
        others = [n for n, kind in metadata.state_dict_metadata.items() if not isinstance(kind, TensorStorageMetadata)]
        if others:
            raise ValueError(f"{file} names {others[0]}, which is no tensor: this checkpoint is not altclip_train's")
        return metadata


_METADATA = "torch.distributed.checkpoint.metadata"
_PICKLED = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """What torch.distributed.checkpoint pickles into .metadata; any other name would be a way to run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PICKLED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")

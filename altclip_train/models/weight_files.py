"""The files that hold a model's weights: which they are, what is in them, and copying out of them.

Files are mapped, never read whole: only what is touched takes memory. Pages of a mapped file count as this
process's memory until the mapping goes, so copying opens a file again after every `WINDOW` bytes.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from altclip_train.files import contents
from altclip_train.models.torchscript import is_torchscript, read_torchscript

WINDOW = 64 * 2**20
SINGLE = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """A tensor in a file, or some rows of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_row: int = 0
    transposed: bool = False  # the reader wants rows and columns the other way round


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """What the weight files of a directory hold."""

    tensors: dict[str, Stored]
    metadata: dict[str, str] = field(default_factory=dict)


def list_weights(directory: Path) -> WeightFiles:
    """Names, shapes and types of the tensors in a model directory; their values are not read.

    Raises FileNotFoundError or ValueError that name the file.
    """
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in find_weight_files(directory):
        _refuse_stand_ins(file)
        if file.suffix == ".safetensors":
            metadata |= _read_metadata(file)
        for name, tensor in _open(file).items():
            if name in tensors:
                raise ValueError(f"{file} and {tensors[name].file} both hold {name}: keep one of the files")
            tensors[name] = Stored(file, name, tuple(tensor.shape), tensor.dtype)
    return WeightFiles(tensors=tensors, metadata=metadata)


def copy_weights(jobs: Iterable[tuple[Stored, Tensor]]) -> None:
    """Copy each stored tensor into its target, which has its shape, and may be of another type and device."""
    by_file: dict[Path, list[tuple[Stored, Tensor]]] = {}
    for stored, target in jobs:
        by_file.setdefault(stored.file, []).append((stored, target.T if stored.transposed else target))
    for file, wanted in by_file.items():
        for window in _windows(wanted, WINDOW if _can_be_mapped(file) else None):
            source = _open(file, {name for name, _, _ in window})
            for name, rows, target in window:
                target.copy_(source[name][rows].view(target.shape))


def find_weight_files(directory: Path) -> list[Path]:
    """Files that make up the weights of a model directory. Raises FileNotFoundError that says what it holds."""
    for name in SINGLE:
        file, index = directory / name, directory / f"{name}.index.json"
        if file.is_symlink() and not file.exists():
            raise FileNotFoundError(f"{file} is a link that leads nowhere: download the file again")
        if file.is_file():
            return [file]
        if index.is_file():
            return _shards(index)
    single = sorted(directory.glob("*.pt"))
    if len(single) == 1:
        return single
    raise FileNotFoundError(
        f"{directory} holds no {' or '.join(SINGLE)}, no index of one, and not exactly one .pt file; "
        f"it holds {contents(directory)}"
    )


def _shards(index: Path) -> list[Path]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weight files ({error!r}): download it again") from error
    if not names:
        raise ValueError(f"{index} names no files: download it again")
    if outside:
        raise ValueError(f"{index} names {outside[0]!r}, expected names of files beside it")
    files = [index.parent / name for name in names]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(absent)}")
    return files


def _refuse_stand_ins(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if not start:
        raise ValueError(f"{file} is empty: download it again")
    if start == _LFS_POINTER:
        raise ValueError(f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its directory")


def _read_metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as reader:
            return reader.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or no safetensors file ({error}): download it again") from error


def _open(file: Path, wanted: set[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, at least those `wanted`, mapped where that is possible; by default only their shapes."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as reader:
            names = reader.keys() if wanted is None else wanted
            return {name: reader.get_tensor(name) for name in names}
    return _open_pickle(file, values=wanted is not None)


def _open_pickle(file: Path, *, values: bool) -> dict[str, Tensor]:
    try:
        content = read_torchscript(file, values=values) if is_torchscript(file) else _load(file, values=values)
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file} cannot be read as plain tensors ({reason}): it is damaged, or it holds Python objects or code, "
            "which are never run; convert it to safetensors where you trust it"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # a training state of open_clip
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected names and their tensors")
    tensors = {name.removeprefix("module."): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{file}: {name} is a sparse or quantised tensor, expected a plain one")
    return tensors


def _load(file: Path, *, values: bool) -> Any:
    device = "cpu" if values else "meta"
    return torch.load(file, map_location=device, weights_only=True, mmap=values and _can_be_mapped(file))


def _can_be_mapped(file: Path) -> bool:
    """Pickles from before torch 1.6 are no zip archives and are read whole."""
    return file.suffix == ".safetensors" or zipfile.is_zipfile(file)


def _windows(jobs: list[tuple[Stored, Tensor]], limit: int | None) -> Iterator[list[tuple[str, slice | Any, Tensor]]]:
    """The jobs cut into pieces (name, rows, target) and gathered into lists of at most `limit` bytes each."""
    window: list[tuple[str, slice | Any, Tensor]] = []
    room = limit
    for stored, target in jobs:
        for rows, part in _pieces(stored, target, limit):
            size = part.numel() * stored.dtype.itemsize
            if limit is not None and room is not None:
                if window and size > room:
                    yield window
                    window, room = [], limit
                room -= size
            window.append((stored.name, rows, part))
    if window:
        yield window


def _pieces(stored: Stored, target: Tensor, limit: int | None) -> Iterator[tuple[slice | Any, Tensor]]:
    if target.ndim == 0:
        yield ..., target
        return
    bytes_per_row = target[0].numel() * stored.dtype.itemsize
    step = len(target) if limit is None else max(1, limit // bytes_per_row)
    for start in range(0, len(target), step):
        part = target[start : start + step]
        yield slice(stored.first_row + start, stored.first_row + start + len(part)), part

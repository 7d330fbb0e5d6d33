"""The tensors of a TorchScript archive, the form of OpenAI's CLIPs, without running anything in it.

The archive is a zip file. `data.pkl` describes modules and says in which entry each of their tensors lies; loading it
by torch would run its code. Here every class in it is an empty one, and no function is called but our own.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def is_torchscript(file: Path) -> bool:
    """Whether this is an archive that `torch.jit.save` wrote; `torch.save` writes no constants."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path, *, values: bool) -> dict[str, Tensor]:
    """Parameters and buffers under the names of the state dict, mapped from the file; only shapes without `values`.

    A damaged or hostile archive can raise nearly anything.
    """
    with zipfile.ZipFile(file) as archive:
        (description,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        entries = _Entries(file, archive, description.removesuffix("data.pkl"), values=values)
        model = _Unpickler(io.BytesIO(archive.read(_stored(archive, description))), entries).load()
    return dict(_named_tensors(model, "", set()))


def _stored(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry that lies in the file as it is, so that it is no larger than the file."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch's own archives leave out")
    return entry


class _Module:
    """Stands for a module of any class; its attributes are those of the module."""


class _Entries:
    """Tensors out of the archive's entries."""

    def __init__(self, file: Path, archive: zipfile.ZipFile, folder: str, *, values: bool) -> None:
        self.archive, self.folder = archive, folder
        self.mapped: Any = None  # a slice of torch's storages has no type
        if values:
            self.mapped = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)

    def tensor(self, storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        """What `torch._utils._rebuild_tensor_v2` would make of the same arguments."""
        _, dtype, key, _, _ = storage
        if self.mapped is None:
            return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        entry = _stored(self.archive, f"{self.folder}data/{key}")
        # The entry's own header has 30 bytes, the last four being the lengths of its name and padding, which follow.
        end = entry.header_offset + 30
        start = end + sum(struct.unpack("<HH", bytes(self.mapped[end - 4 : end].tolist())))
        content = self.mapped[start : start + entry.file_size]
        return torch.empty(0, dtype=dtype).set_(content, offset, shape, strides)  # refuses what lies outside of it


class _Unpickler(pickle._Unpickler):
    """Makes plain data, tensors of the archive, and a `_Module` for anything of a class of the archive's own.

    On Python's own unpickler, because the one in C takes as much memory as the highest number that a pickle names.
    """

    def __init__(self, stream: io.BytesIO, entries: _Entries) -> None:
        super().__init__(stream)
        self.entries = entries

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        # New ones each time: a pickle may set attributes of what it is given here.
        if module.partition(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        if module == "torch.jit._pickle":  # lists whose elements have one type
            return lambda values, *_: values
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.entries.tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _named_tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, _Module) or id(module) in seen:
        raise ValueError(f"{prefix or 'its content'} is no module, or one that stands in two places")
    seen.add(id(module))
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _named_tensors(value, f"{prefix}{name}.", seen)

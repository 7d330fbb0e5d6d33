"""`altclip export`: a trained model as a directory of files that other software reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from altclip_train.export.checkpoint import TrainedModel, open_trained_model
from altclip_train.model_card import directory_usage

Writer = Callable[[TrainedModel, Path], None]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export(checkpoint: str | Path, directory: str | Path, *, format: str = "altclip", dtype: str = "float32") -> Path:
    """Write the model that ``checkpoint`` names into a new ``directory``, whole or not at all.

    ``checkpoint`` is a model directory, a hub id, a run or one of its training states. Raises FileExistsError for a
    directory that holds anything, ValueError for what the format cannot hold, and what `open_trained_model` raises.
    """
    if format not in WRITERS or dtype not in DTYPES:
        raise ValueError(f"format={format!r}, dtype={dtype!r}: formats are {list(WRITERS)}, dtypes {list(DTYPES)}")
    write = WRITERS[format]()
    with new_directory(Path(directory)) as incomplete:
        found = open_trained_model(checkpoint)
        _cast(found, DTYPES[dtype])
        found.model.tokenizer_sha256 = found.processor.tokenizer.fingerprint
        write(found, incomplete)
    return Path(directory)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory beside ``directory`` to write into, which takes its name once everything is there."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists already: give the name of a new directory, or remove it")
    incomplete = directory.absolute().with_name(f"{directory.absolute().name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)  # of an export that was killed
    incomplete.mkdir(parents=True)
    try:
        yield incomplete
        incomplete.replace(directory)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _cast(found: TrainedModel, dtype: torch.dtype) -> None:
    found.model.to(dtype)
    for name, tensor in found.model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite as {dtype}: choose another --dtype, such as float32")


def _write_published(found: TrainedModel, directory: Path) -> None:
    found.model.save_pretrained(directory)
    found.processor.save_pretrained(directory)
    found.write_card(directory, directory_usage(found.model))


def _published() -> Writer:
    return _write_published


def _onnx() -> Writer:
    from altclip_train.export.onnx import require_onnx, write_onnx

    require_onnx()
    return write_onnx


def _open_clip() -> Writer:
    from altclip_train.export.open_clip import write_open_clip

    return write_open_clip


# Called before a model is read: a format may lack packages.
WRITERS: dict[str, Callable[[], Writer]] = {"altclip": _published, "onnx": _onnx, "open_clip": _open_clip}

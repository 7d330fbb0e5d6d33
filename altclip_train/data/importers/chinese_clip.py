"""Chinese-CLIP's pairs of files: ``<split>_imgs.tsv`` with base64 pictures, ``<split>_texts.jsonl`` with texts."""

from __future__ import annotations

import base64
import binascii
import json
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from altclip_train.data.samples import BadSample

_STANDARD = str.maketrans("-_", "+/")


def decode_base64(text: str) -> bytes:
    """Bytes of standard or URL-safe base64. Raises BadSample for foreign characters, which are damage."""
    try:
        return base64.b64decode(text.translate(_STANDARD), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample("base64", str(error)) from None


def split_files(directory: Path, split: str) -> tuple[Path, Path]:
    """Pictures and texts of a split. Raises FileNotFoundError naming what is there."""
    files = directory / f"{split}_imgs.tsv", directory / f"{split}_texts.jsonl"
    for file in files:
        if not file.is_file():
            found = ", ".join(sorted(path.name for path in directory.glob("*_*.*"))[:12]) or "no such files"
            raise FileNotFoundError(f"{file} does not exist; {directory} holds {found}: give --split, or its folder")
    return files


def index_texts(files: Sequence[Path], target: Path) -> None:
    """Write to ``target`` which line names which picture: (3, N) int64 of picture id, file, byte offset.

    24 bytes per pair of text and picture, sorted by picture and then by place. Raises ValueError with the line.
    """
    ids, places, offsets = array("q"), array("q"), array("q")
    for place, file in enumerate(files):
        offset = 0
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    for image_id in read_text_record(line, f"{file}:{number}")[1]:
                        ids.append(image_id)
                        places.append(place)
                        offsets.append(offset)
                offset += len(line)
    table = np.array([ids, places, offsets], dtype=np.int64).reshape(3, -1)
    np.save(target, table[:, np.argsort(table[0], kind="stable")])


def read_text_record(line: bytes, where: str) -> tuple[str, list[int]]:
    """Text and ids of its pictures, from a line of ``<split>_texts.jsonl``. Raises ValueError with ``where``."""
    try:
        record = json.loads(line)
        if not isinstance(record["text"], str):
            raise ValueError("text is not a string")
        return record["text"], [int(image_id) for image_id in record["image_ids"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {type(error).__name__}: {error}: expected an object with text and image_ids, a list of integers"
        ) from None


class PictureTexts:
    """Texts of a picture by its id, out of an index that stays on disk; safe to pickle."""

    def __init__(self, files: Sequence[Path], index: Path) -> None:
        self.files, self.index = tuple(files), index

    @cached_property
    def _table(self) -> np.ndarray:
        return np.load(self.index, mmap_mode="r")

    def __getstate__(self) -> dict[str, object]:
        return {"files": self.files, "index": self.index}

    def __len__(self) -> int:
        return self._table.shape[1]

    def of(self, image_id: str) -> list[str]:
        """Texts that name the picture, in the order of the file."""
        try:
            number = int(image_id)
        except ValueError:
            raise BadSample("picture_id", f"{image_id[:40]!r} is not an integer") from None
        start, end = np.searchsorted(self._table[0], [number, number + 1])
        texts = []
        for place, offset in self._table[1:, start:end].T.tolist():
            with open(self.files[place], "rb") as file:
                file.seek(offset)
                texts.append(json.loads(file.readline())["text"])
        return texts

"""The pictures of a benchmark, in order; they are read whenever they are looked at, and never all in memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from altclip_train.data.importers.annotations import find_picture
from altclip_train.data.importers.chinese_clip import decode_base64
from altclip_train.data.importers.tables import LineTable
from altclip_train.data.samples import BadSample, decode_image

if TYPE_CHECKING:
    from PIL import Image

THREADS = 8


class Pictures(ABC):
    """Any number of pictures; iterating gives functions that decode them, to be called in any thread."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What the data call the picture, wherever they lie."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What messages call the picture."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Bytes of the picture, from any thread. Raises ValueError naming a picture that is damaged."""

    def decode(self, index: int) -> Image.Image:
        """The picture. Raises ValueError naming one that cannot be decoded."""
        data = self.read(index)
        try:
            return decode_image({"jpg": data})
        except BadSample as error:
            raise ValueError(f"{self.where(index)} cannot be decoded ({error}); replace it") from error

    def __iter__(self) -> Iterator[Callable[[], Image.Image]]:
        return (partial(self.decode, index) for index in range(len(self)))

    @cached_property
    def sha256(self) -> str:
        """Stands for the bytes of all pictures and their order; reads them all."""
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(lambda index: hashlib.sha256(self.read(index)).hexdigest(), range(len(self)))
            return texts_sha256(*digests)


class PictureFiles(Pictures):
    def __init__(self, paths: Sequence[Path], names: Sequence[str]) -> None:
        self.paths, self.names = list(paths), list(names)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.names[index]

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


class PictureTable(Pictures):
    """Lines ``id TAB base64`` of Chinese-CLIP's ``<split>_imgs.tsv``; ``ids`` are those of the pictures."""

    def __init__(self, file: Path) -> None:
        self._table = LineTable([file], "tsv", ["id", "picture"])
        self._positions = list(self._table.positions())
        self.ids = [str(self._fields(index)["id"]) for index in range(len(self))]

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        return self.ids[index]

    def where(self, index: int) -> str:
        return f"{self._table.paths[0]}:{self._positions[index].line}"

    def read(self, index: int) -> bytes:
        try:
            return decode_base64(self._fields(index)["picture"])
        except BadSample as error:
            raise ValueError(f"{self.where(index)} is damaged ({error}); replace it") from None

    def _fields(self, index: int) -> dict[str, str]:
        fields = next(iter(self._table.rows(self._positions[index]))).fields
        if isinstance(fields, BadSample):
            raise ValueError(f"{self.where(index)} is no id and picture ({fields})")
        return fields


def named_pictures(names: Sequence[str], folders: Sequence[Path]) -> PictureFiles:
    """The files of the pictures ``names``, all in the first of ``folders`` that has the first one.

    Raises FileNotFoundError with the number of missing pictures: scores of the others would be those of other data.
    """
    folder = next((folder for folder in folders if _find(folder, names[0]) is not None), None)
    if folder is None:
        looked = ", ".join(map(str, folders))
        raise FileNotFoundError(f"picture {names[0]} is in none of {looked}; give the folder of the pictures")
    found = [_find(folder, name) for name in names]
    if missing := [name for name, path in zip(names, found, strict=True) if path is None]:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing):,} of {len(names):,} pictures, the first is {missing[0]}"
        )
    return PictureFiles([path for path in found if path is not None], names)


def _find(folder: Path, name: str) -> Path | None:
    try:
        return find_picture(folder, name)
    except BadSample as error:
        if error.reason == "picture_missing":
            return None
        raise ValueError(str(error)) from None


def texts_sha256(*texts: str) -> str:
    """Hash of a list of texts; their lengths are part of it, so ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()

"""Pictures in every form that users hold them in: Pillow, arrays, tensors, bytes, files, and lists of those."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

Picture: TypeAlias = Image.Image | np.ndarray | torch.Tensor | bytes | str | Path
# Lists may be nested; an array or tensor of four dimensions is a batch.
Pictures: TypeAlias = Picture | Sequence["Pictures"]

_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def open_pictures(images: Pictures, *, do_rescale: bool = True) -> list[Image.Image]:
    """All pictures in order, as Pillow pictures of any mode.

    Arrays are (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4 channels, the first where both fit, and hold
    0 to 255; with ``do_rescale=False`` they are floats in [0, 1], and are cut to 8 bits, as `transformers` does.
    Raises FileNotFoundError for a path without a file, ValueError for what is no picture.
    """
    if isinstance(images, list | tuple):
        return [picture for one in images for picture in open_pictures(one, do_rescale=do_rescale)]
    if isinstance(images, np.ndarray | torch.Tensor):
        array = _as_array(images)
        return [_from_array(one, do_rescale) for one in (array if array.ndim == 4 else [array])]
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, bytes | bytearray):
        return [_decode(io.BytesIO(images), f"a bytes object of {len(images)} bytes")]
    if isinstance(images, str | Path):
        return [_decode(_picture_file(images), f"{images}")]
    raise ValueError(
        f"a picture must be a PIL image, an array or tensor, the bytes or the path of a file, not {type(images)}"
    )


def _picture_file(source: str | Path) -> Path:
    if str(source).startswith(("http://", "https://", "data:")):
        raise ValueError(f"{str(source)[:80]!r} is a URL, and nothing is downloaded here: pass the bytes or a file")
    path = Path(source).expanduser()
    if len(str(source)) > 4096 or not path.is_file():  # too long a name is an error of the system
        raise FileNotFoundError(f"no picture file {str(source)[:200]!r}. If this is a text, pass it as text=...")
    return path


def _decode(file: io.BytesIO | Path, name: str) -> Image.Image:
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in a format that Pillow knows") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise ValueError(f"{name} is a damaged picture: {error}") from error


def _as_array(picture: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        return picture
    picture = picture.detach().cpu()
    return (picture.float() if picture.is_floating_point() else picture).numpy()


def _from_array(array: np.ndarray, do_rescale: bool) -> Image.Image:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size or not {array.shape[0], array.shape[-1]} & set(_CHANNELS):
        raise ValueError(f"an array of shape {array.shape} is no picture: expected (H, W, C) or (C, H, W), C = 1, 3, 4")
    if array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    levels = _eight_bits(array, do_rescale)  # (H, W, C)
    mode = _CHANNELS[levels.shape[-1]]
    return Image.fromarray(np.ascontiguousarray(levels[..., 0] if mode == "L" else levels))


def _eight_bits(array: np.ndarray, do_rescale: bool) -> np.ndarray:
    """Values as bytes. Raises ValueError where their range is not the one that ``do_rescale`` says."""
    lowest, highest = array.min(), array.max()
    found = f"{array.dtype} values from {lowest} to {highest}"
    if not do_rescale:
        if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
            return (array.astype(np.float64) * 255).astype(np.float32).astype(np.uint8)
        raise ValueError(f"do_rescale=False says that pictures are floats in [0, 1], found {found}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "iuf" and lowest >= 0 and highest <= 255 and np.array_equal(array, np.trunc(array)):
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        raise ValueError(f"{found}: pass do_rescale=False for pictures whose values are in [0, 1] already")
    raise ValueError(f"{found}: expected whole numbers from 0 to 255, or floats in [0, 1] and do_rescale=False")

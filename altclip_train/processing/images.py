"""Pictures to the pixel values that CLIP's image tower was trained on.

Resize the shortest edge (bicubic), crop the centre, scale to [0, 1], normalise: AltCLIP's and CLIP's
preprocessor_config.json. Values equal those of `transformers`' Pillow image processor for 8-bit pictures.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from altclip_train.hub import model_directory
from altclip_train.processing.image_settings import CLIP_MEAN, CLIP_STD, read_image_settings

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)
# Above this many times the crop, the part of a very long picture that the crop discards is never computed.
# Pillow holds the edges of the rest as 32-bit floats, so values may then come out one grey level off, rarely two.
_LONGEST_EDGE_IN_CROPS = 64


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB picture of any Pillow mode.

    Transparent parts show white; EXIF rotation is applied; an animation is its first frame.
    Greys of more than 8 bits are scaled by their range, where Pillow's own conversion cuts them off at white:
    16-bit by 65535; integer and float pictures by the smallest of 1 (float), 255, 65535 or their maximum
    that holds all values.
    """
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_levels(image).convert("RGB")
    if image.mode in ("La", "RGBa"):  # alpha already multiplied into the colours
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except (SyntaxError, struct.error, ValueError, TypeError, OSError):
        return image  # damaged EXIF, all that Pillow raises for it, does not make the picture useless
    if orientation not in _TURNS:
        return image
    # Not ImageOps.exif_transpose, which fails where it cannot write the other EXIF fields back.
    upright = image.transpose(_TURNS[orientation])
    # The tag is a copy in `info` and would turn the picture a second time.
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _grey_levels(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)  # (H, W)
    highest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16"):
        full = 65535.0
    else:
        ranges = ([1.0] if image.mode == "F" else []) + [255.0, 65535.0]
        full = next((limit for limit in ranges if highest <= limit), highest)
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8))


class ImageTransform:
    """Resize, centre crop and normalise a picture to a (3, R, R) float32 tensor, R = ``crop_size``."""

    def __init__(
        self,
        *,
        size: int | tuple[int, int],
        crop_size: int,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        resample: int = Image.Resampling.BICUBIC,
    ) -> None:
        """``size`` is the shortest edge after the resize, or the exact (height, width).

        Raises ValueError for sizes below 1 and for a mean or std that has not three values.
        """
        if min(size if isinstance(size, tuple) else (size,)) < 1 or crop_size < 1:
            raise ValueError(f"size={size} and crop_size={crop_size} must be at least 1 pixel")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={mean} and std={std} must have three values, those of std above 0")
        self.size = size
        self.crop_size = crop_size
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.resample = Image.Resampling(resample)

    def __call__(self, image: Image.Image) -> Tensor:
        """Pixel values (3, R, R) float32 of a picture of any mode and size."""
        return self.normalize(torch.from_numpy(self.cropped(image)[None].copy()))[0]

    def cropped(self, image: Image.Image) -> np.ndarray:
        """A picture of any mode and size as (R, R, 3) uint8, not normalised: a quarter of the bytes."""
        return np.asarray(self._crop(self._resize(to_rgb(image))))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixel values (B, 3, R, R) float32 of what `cropped` gives, (B, R, R, 3) uint8: equal bits on every device."""
        on_cpu, (batch, height, width, _) = pixels.device.type == "cpu", pixels.shape
        shape = (batch, 3, height, width)
        # NumPy asks for huge pages, torch does not.
        values = torch.from_numpy(np.empty(shape, np.float32)) if on_cpu else torch.empty(shape, device=pixels.device)
        # Tensors, since CUDA multiplies by the reciprocal of a number, which rounds in another way; and made where they
        # are used, since a copy would wait for the device.
        constant = partial(torch.full, (1, 1), dtype=torch.float32, device=pixels.device)
        highest, mean, std = (torch.stack(list(map(constant, some))) for some in ([255.0], self.mean, self.std))
        # On a CPU one picture at a time, which stays in its cache.
        for some, out in zip(pixels, values, strict=True) if on_cpu else [(pixels, values)]:
            out.copy_(some.movedim(-1, -3)).div_(highest).sub_(mean).div_(std)
        return values

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after the resize, the longer edge rounded down. ValueError for no pixels."""
        if min(width, height) < 1:
            raise ValueError(f"a picture of {width} x {height} pixels has no content")
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        longer = int(self.size * max(width, height) / min(width, height))
        return (self.size, longer) if width <= height else (longer, self.size)

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = self.resized_size(*image.size)
        if (width, height) == image.size:
            return image
        limit = _LONGEST_EDGE_IN_CROPS * self.crop_size
        if max(width, height) <= limit:
            if width > self.crop_size:
                # Rows before columns, as Pillow does; of the columns only those that the crop keeps.
                image = image.resize((width, image.height), self.resample)
                left, width = (width - self.crop_size) // 2, self.crop_size
                image = image.crop((left, 0, left + width, image.height))
            return image.resize((width, height), self.resample)
        first, last, left, right = _needed(image.width, width, self.crop_size)
        upper, lower, top, bottom = _needed(image.height, height, self.crop_size)
        image = image.crop((first, upper, last, lower))
        # Rows before columns, as Pillow does for whole pictures: intermediate values are rounded to 8 bits.
        columns, rows = min(width, self.crop_size), min(height, self.crop_size)
        image = image.resize((columns, image.height), self.resample, box=(left, 0, right, image.height))
        return image.resize((columns, rows), self.resample, box=(0, top, columns, bottom))

    def _crop(self, image: Image.Image) -> Image.Image:
        crop = self.crop_size
        if image.size == (crop, crop):
            return image
        # A picture below the crop size gets a black border, the odd pixel on the left and top.
        left, top = ((edge - crop) // 2 if edge >= crop else -math.ceil((crop - edge) / 2) for edge in image.size)
        return image.crop((left, top, left + crop, top + crop))

    def to_dict(self) -> dict[str, Any]:
        """The settings as preprocessor_config.json spells them."""
        size = self.size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": size[0], "width": size[1]} if isinstance(size, tuple) else {"shortest_edge": size},
            "resample": int(self.resample),
            "do_center_crop": True,
            "crop_size": {"height": self.crop_size, "width": self.crop_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def save_pretrained(self, directory: str | Path) -> None:
        """Write preprocessor_config.json as CLIP's image processor reads it."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *, size: Any = None, crop_size: Any = None) -> ImageTransform:
        """Read what a directory or hub id says, in any of the files that `read_image_settings` knows.

        ``size`` and ``crop_size`` are used in place of the directory's, in the spelling of preprocessor_config.json.
        Raises FileNotFoundError without any file, ValueError for a step or size that this transform lacks.
        """
        path, settings = read_image_settings(model_directory(path_or_id))
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not settings.get(step, True):
                raise ValueError(f"{path}: {step} is false, only CLIP's full preprocessing is supported")
        factor = settings.get("rescale_factor", 1 / 255)
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(f"{path}: rescale_factor is {factor}, expected 1/255")
        return cls(
            size=_read_size(path, settings.get("size", 224) if size is None else size),
            crop_size=_read_crop(path, settings.get("crop_size", 224) if crop_size is None else crop_size),
            mean=settings.get("image_mean", CLIP_MEAN),
            std=settings.get("image_std", CLIP_STD),
            resample=settings.get("resample", Image.Resampling.BICUBIC),
        )


def _needed(edge: int, resized: int, crop: int) -> tuple[int, int, float, float]:
    """Pixels [first, last) of ``edge`` that the crop of a resized edge is made from, and where in them it lies."""
    scale = edge / resized
    start = max(0, (resized - crop) // 2)
    stop = min(resized, start + crop)
    reach = math.ceil(3 * max(1.0, scale)) + 1  # of Lanczos, the widest filter
    first = max(0, math.floor(start * scale) - reach)
    last = min(edge, math.ceil(stop * scale) + reach)
    return first, last, start * scale - first, stop * scale - first


def _read_size(path: Path, value: Any) -> int | tuple[int, int]:
    if isinstance(value, int):  # the format of CLIP's first published directories
        return value
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
        return value["shortest_edge"]
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return value["height"], value["width"]
    raise ValueError(f"{path}: size is {value}, expected {{'shortest_edge': pixels}} or height and width")


def _read_crop(path: Path, value: Any) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, dict) and value.get("height") == value.get("width") and value.get("height"):
        return value["height"]
    raise ValueError(f"{path}: crop_size is {value}, expected equal height and width")

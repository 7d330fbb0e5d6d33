"""Random changes of a training picture that keep its caption true."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from altclip_train.processing.images import to_rgb

# ITU-R 601-2 luma, the grey of Pillow's own conversion.
_LUMA = np.array([0.299, 0.587, 0.114])


class Augmentation:
    """One affine resample (rotation, scale, shift) and one colour matrix (brightness, contrast, saturation).

    Nothing is mirrored: captions say left and right.
    """

    def __init__(
        self,
        *,
        rotate_degrees: float = 0.0,
        shift: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        grey_probability: float = 0.0,
    ) -> None:
        """Strengths are the largest change to either side.

        Args:
            rotate_degrees: rotation in degrees.
            shift: shift as a share of the picture's width and height.
            scale: smallest and largest size of the content, 1 = as it is.
            brightness, contrast, saturation: factors are drawn from [1 - x, 1 + x].
            grey_probability: share of pictures that lose their colours.

        Raises ValueError naming the argument that is out of its range.
        """
        low, high = scale
        if not 0 < low <= high:
            raise ValueError(f"scale={tuple(scale)} must be (low, high) with 0 < low <= high")
        shares = {
            "shift": shift,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "grey_probability": grey_probability,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be in [0, 1]")
        if not 0 <= rotate_degrees <= 180:
            raise ValueError(f"rotate_degrees={rotate_degrees} must be in [0, 180]")
        self.rotate_degrees = rotate_degrees
        self.shift = shift
        self.scale = (float(low), float(high))
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.grey_probability = grey_probability

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        """A changed RGB picture of the same size.

        Always draws the same count of numbers, so one setting never moves another one's draws.
        """
        image = to_rgb(image)
        turn, across, down, brightness, contrast, saturation = generator.uniform(-1.0, 1.0, 6).tolist()
        size, grey = generator.uniform(0.0, 1.0, 2).tolist()
        image = self._move(image, turn, size, across, down)
        return self._recolour(image, brightness, contrast, saturation, grey < self.grey_probability)

    def _move(self, image: Image.Image, turn: float, size: float, across: float, down: float) -> Image.Image:
        low, high = self.scale
        if self.rotate_degrees == 0 and self.shift == 0 and low == high == 1:
            return image
        angle = math.radians(turn * self.rotate_degrees)
        factor = low * (high / low) ** size  # halving is as likely as doubling
        cosine, sine = math.cos(angle) / factor, math.sin(angle) / factor
        # Pillow wants the map from output to input pixels, around the centre of the picture.
        centre_x, centre_y = image.width / 2, image.height / 2
        shifted_x = centre_x + across * self.shift * image.width
        shifted_y = centre_y + down * self.shift * image.height
        matrix = (
            cosine,
            sine,
            centre_x - cosine * shifted_x - sine * shifted_y,
            -sine,
            cosine,
            centre_y + sine * shifted_x - cosine * shifted_y,
        )
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            matrix,
            resample=Image.Resampling.BILINEAR,
            fillcolor=_corner_colour(image),
        )

    def _recolour(
        self, image: Image.Image, brightness: float, contrast: float, saturation: float, grey: bool
    ) -> Image.Image:
        if self.brightness == self.contrast == self.saturation == 0 and not grey:
            return image
        bright = 1 + brightness * self.brightness
        steep = 1 + contrast * self.contrast
        vivid = 0.0 if grey else 1 + saturation * self.saturation
        # All three are linear, so they are one 3 x 4 matrix: x -> bright * steep * saturate(x) + offset.
        # Contrast leaves the mean grey of the brightened picture in place.
        saturate = vivid * np.eye(3) + (1 - vivid) * np.ones((3, 1)) * _LUMA[None]
        offset = (1 - steep) * bright * _mean_grey(image) if self.contrast else 0.0
        matrix = np.concatenate([bright * steep * saturate, np.full((3, 1), offset)], axis=1)
        return image.convert("RGB", tuple(matrix.ravel().tolist()))


def _corner_colour(image: Image.Image) -> tuple[int, int, int]:
    """The corner colour nearest to the other corners': one odd corner does not colour the border."""
    pixels = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int64)  # (4, 3)
    distances = np.abs(pixels[:, None] - pixels[None]).sum(axis=(1, 2))  # (4,)
    red, green, blue = pixels[distances.argmin()].tolist()
    return red, green, blue


def _mean_grey(image: Image.Image) -> float:
    return float(np.asarray(image.resize((1, 1), Image.Resampling.BOX)).reshape(3) @ _LUMA)

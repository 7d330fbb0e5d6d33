"""Fonts for captions of any language: letters are looked up in the fonts that are installed."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from matplotlib import font_manager, get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

# Names of sans-serif families with many scripts, in the order in which they are tried.
FAMILIES = (
    "NotoSansCJK",
    "SourceHanSans",
    "PingFang",
    "msyh",
    "wqy",
    "DroidSansFallback",
    "simhei",
    "NotoSans",
    "Arial",
)
HELP = "install a font that has them (Debian: fonts-noto-cjk; anywhere: pip install mplfonts) or name one by --font"


class Fonts:
    """One size of several fonts; each letter is drawn in the first that has it."""

    def __init__(self, paths: Sequence[str | Path], size: int) -> None:
        self._maps = [_letters(path) for path in paths]
        self._fonts = [ImageFont.truetype(str(path), size) for path in paths]
        metrics = [font.getmetrics() for font in self._fonts]
        self.ascent = max(ascent for ascent, _ in metrics)
        self.line_height = self.ascent + max(descent for _, descent in metrics)

    def runs(self, text: str) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        """``text`` in pieces of one font each."""
        runs: list[tuple[str, ImageFont.FreeTypeFont]] = []
        for letter in text:
            font = self._font(letter) if letter != " " or not runs else runs[-1][1]
            if runs and runs[-1][1] is font:
                runs[-1] = (runs[-1][0] + letter, font)
            else:
                runs.append((letter, font))
        return runs

    def _font(self, letter: str) -> ImageFont.FreeTypeFont:
        return next(
            (font for font, has in zip(self._fonts, self._maps, strict=True) if ord(letter) in has), self._fonts[0]
        )

    def width(self, text: str) -> float:
        return sum(font.getlength(piece) for piece, font in self.runs(text))


def find_fonts(text: str, preferred: str | Path | None = None) -> tuple[list[Path], str]:
    """Installed fonts that together have the letters of ``text``, and those letters that none has.

    Raises FileNotFoundError when the ``preferred`` font is not there.
    """
    if preferred is not None and not Path(preferred).is_file():
        raise FileNotFoundError(f"--font {preferred} is not a file")
    missing = {letter for letter in text if not letter.isspace() and unicodedata.category(letter)[0] != "C"}
    chosen: list[Path] = []
    for path in _candidates(preferred):
        letters = _letters(path)
        found = {letter for letter in missing if ord(letter) in letters}
        if found or not chosen:  # the first also draws what none has, as a box
            chosen.append(path)
            missing -= found
        if not missing:
            break
    return chosen, "".join(sorted(missing))


def _candidates(preferred: str | Path | None) -> Iterator[Path]:
    """Fonts in the order in which they are tried: one for Latin letters, the preferred one, all others."""
    yield from _in_package("manimgx_fonts", "NotoSans[[]wght].ttf")
    yield Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if preferred is not None:
        yield Path(preferred)
    yield from sorted(map(Path, font_manager.findSystemFonts()), key=_rank)
    yield from _in_package("mplfonts", "fonts/NotoSansCJK*.otf")
    yield from _in_package("manimgx_fonts", "NotoSans*.ttf")


def _in_package(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return [font for folder in folders or () for font in sorted(Path(folder).glob(pattern))]


def _rank(path: Path) -> tuple[int, bool, str]:
    name = path.name.lower()
    family = next((i for i, family in enumerate(FAMILIES) if name.startswith(family.lower())), len(FAMILIES))
    return family, "regular" not in name, str(path)


def _letters(path: str | Path) -> Iterable[int]:
    try:
        return FT2Font(str(path)).get_charmap().keys()
    except (RuntimeError, OSError):
        return ()  # a font that cannot be read has no letters

"""A picture of samples: a grid of pictures, each above its captions in every language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from altclip_train.data.fonts import HELP, Fonts, find_fonts
from altclip_train.processing.images import to_rgb

CELL, GAP, MARGIN, COLUMNS = 240, 20, 28, 6
TEXT, TITLE = 16, 22  # font sizes
BETWEEN = 4  # captions
LINES = 4  # of one caption; what is longer ends in an ellipsis
BACKGROUND, FRAME, INK, FAINT = "#ffffff", "#eef0f3", "#1c2530", "#7a8594"
COLORS = ("#2563a8", "#b3401f", "#2f7d4a", "#7b3fa0", "#9a6b00", "#0f766e")  # of languages
# A line may end after any of these: a word with its spaces, or a letter of a script without spaces.
_SINGLE = r"\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U000323af"
_UNITS = re.compile(rf"[{_SINGLE}]|[^\s{_SINGLE}]+\s*|\s+")
_NOT_FIRST = set("，。、！？；：）》」』】…,.!?;:)]}’”%ー々")  # of a line


class Pictured(NamedTuple):
    """What the sheet shows of one sample."""

    key: str
    picture: Image.Image
    captions: dict[str, list[str]]


def contact_sheet(
    samples: Sequence[Pictured], target: Path, *, title: str, subtitle: str, font: str | Path | None = None
) -> str | None:
    """Write the sheet as PNG; returns a note where fonts lack letters. Raises ValueError without samples."""
    if not samples:
        raise ValueError(f"no sample with a picture and captions was found, so there is no contact sheet {target}")
    every_text = " ".join(text for sample in samples for texts in sample.captions.values() for text in texts)
    paths, missing = find_fonts(f"{every_text} {title} {subtitle} …", font)
    lacking = f"no font found has {len(missing)} of the letters"
    languages = sorted({language for sample in samples for language in sample.captions})
    sheet = _Sheet(Fonts(paths, TEXT), Fonts(paths, TITLE), dict(zip(languages, COLORS * len(languages), strict=False)))
    image = sheet.draw(samples, title, subtitle, f"{lacking}: {HELP}" if missing else "")
    temporary = target.with_name(f".{target.name}.tmp.png")
    image.save(temporary)
    temporary.replace(target)
    return f"{lacking}, such as {' '.join(missing[:8])}: {HELP}" if missing else None


class _Sheet:
    """Fonts, the colour of each language, and how cells are laid out."""

    def __init__(self, text: Fonts, title: Fonts, colors: dict[str, str]) -> None:
        self.text, self.title, self.colors = text, title, colors
        self.tag_width = max(text.width(language) for language in colors) + 10
        self.step = round(text.line_height * 1.08)

    def draw(self, samples: Sequence[Pictured], title: str, subtitle: str, note: str) -> Image.Image:
        columns = min(COLUMNS, len(samples))
        captions = [self._captions(sample) for sample in samples]
        rows = [range(first, min(first + columns, len(samples))) for first in range(0, len(samples), columns)]
        heights = [CELL + 10 + max(self._height(captions[i]) for i in row) for row in rows]
        width = max(2 * MARGIN + columns * CELL + (columns - 1) * GAP, 2 * MARGIN + 2 * CELL)
        head = wrap(title, self.title, width - 2 * MARGIN, 2)
        below = wrap(subtitle, self.text, width - 2 * MARGIN, 3) + wrap(note, self.text, width - 2 * MARGIN, 3)
        top = MARGIN + len(head) * self.title.line_height + 6 + len(below) * self.step + GAP
        sheet = Image.new("RGB", (width, top + sum(heights) + GAP * (len(rows) - 1) + MARGIN), BACKGROUND)
        canvas = ImageDraw.Draw(sheet)
        for number, line in enumerate(head):
            draw_text(canvas, (MARGIN, MARGIN + number * self.title.line_height), line, self.title, INK)
        for number, line in enumerate(below):
            place = MARGIN + len(head) * self.title.line_height + 6 + number * self.step
            draw_text(canvas, (MARGIN, place), line, self.text, FAINT)
        for row, height in zip(rows, heights, strict=True):
            for column, i in enumerate(row):
                self._cell(sheet, (MARGIN + column * (CELL + GAP), top), samples[i], captions[i])
            top += height + GAP
        return sheet

    def _height(self, captions: list[tuple[str, str]]) -> int:
        """Of what stands below a picture."""
        return self.step * (1 + len(captions)) + BETWEEN * sum(bool(language) for language, _ in captions)

    def _captions(self, sample: Pictured) -> list[tuple[str, str]]:
        """Language (of a first line alone) and text of each line of the first caption in each language."""
        lines = []
        for language, texts in sample.captions.items():
            wrapped = wrap(texts[0], self.text, CELL - self.tag_width, LINES)
            lines += [(language if number == 0 else "", line) for number, line in enumerate(wrapped)]
        return lines

    def _cell(
        self, sheet: Image.Image, corner: tuple[int, int], sample: Pictured, captions: list[tuple[str, str]]
    ) -> None:
        canvas = ImageDraw.Draw(sheet)
        left, top = corner
        canvas.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=FRAME)
        picture = to_rgb(sample.picture)
        scale = CELL / max(picture.size)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        top += CELL + 10
        label = f"{sample.key} · {sample.picture.width}×{sample.picture.height}"
        draw_text(canvas, (left, top), wrap(label, self.text, CELL, 1)[0], self.text, FAINT)
        for language, line in captions:
            top += self.step
            if language:
                top += BETWEEN
                draw_text(canvas, (left, top), language, self.text, self.colors[language])
            draw_text(canvas, (left + round(self.tag_width), top), line, self.text, INK)


def draw_text(canvas: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, fonts: Fonts, color: str) -> None:
    """Draw one line from its upper left corner; all fonts stand on one baseline."""
    x, y = corner
    for piece, font in fonts.runs(text):
        canvas.text((x, y + fonts.ascent), piece, font=font, fill=color, anchor="ls")
        x += font.getlength(piece)


def wrap(text: str, fonts: Fonts, width: float, limit: int) -> list[str]:
    """At most ``limit`` lines no wider than ``width``, broken between words or letters of scripts without spaces."""
    lines, line = [], ""
    for unit in _units(text, fonts, width):
        if line and fonts.width((line + unit).rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += unit if line else unit.lstrip()
    if line.strip():
        lines.append(line.rstrip())
    if len(lines) > limit:
        last = lines[limit - 1] + "…"
        while len(last) > 1 and fonts.width(last) > width:
            last = last[:-2].rstrip() + "…"
        lines = [*lines[: limit - 1], last]
    return lines


def _units(text: str, fonts: Fonts, width: float) -> list[str]:
    """Parts between which a line may end; none is wider than a line, none begins with closing punctuation."""
    units: list[str] = []
    for unit in _UNITS.findall(" ".join(text.split())):
        if units and unit[0] in _NOT_FIRST:
            units[-1] += unit
        elif fonts.width(unit) <= width:
            units.append(unit)
        else:
            units += list(unit)
    return units

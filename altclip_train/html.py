"""Pieces of pages that are one file: no script, no fonts, no network; pictures and plots lie inside."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

STYLE = """
:root{color-scheme:light dark;--ink:#1c2530;--faint:#6b7683;--line:#dfe3e8;--back:#fff;--band:#f5f7f9;--good:#1f8a4c;
--bad:#c0392b;--mark:#2563a8}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaef;--faint:#98a3af;--line:#333b45;--back:#14181d;--band:#1c2229;
--good:#4cc07d;--bad:#e0705f;--mark:#6ea8e6}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:88rem;padding:2rem 1.5rem 4rem;color:var(--ink);background:var(--back);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.6rem 0 .6rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .5rem}p,ul{max-width:60rem}.faint,small{color:var(--faint)}
h1+p{margin-top:0}code{font-size:.9em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.wide{margin:.8rem 0}th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;vertical-align:bottom}td.text,th.text{text-align:left}tr.faint td{color:var(--faint)}
td small{display:block;line-height:1.1;white-space:nowrap}.sheet{display:grid;gap:1.4rem;margin:1rem 0}
.query{border-top:1px solid var(--line);padding-top:.7rem;display:grid;grid-template-columns:104px 1fr;gap:1rem}
.answer{display:grid;grid-template-columns:minmax(10rem,20rem) 1fr;gap:.8rem;margin-bottom:.7rem}
.row{display:flex;gap:6px;flex-wrap:wrap}img{display:block;border-radius:3px;border:3px solid transparent;
background:var(--band)}img.right{border-color:var(--good)}.right{color:var(--good)}
.tag{color:var(--mark);font-weight:600}
svg text{fill:var(--ink);font-size:11px}svg .axis{stroke:var(--line)}ol{margin:0;padding-left:1.4rem}
svg .grid{stroke:var(--line);stroke-opacity:.6;stroke-dasharray:2 3}.figures{display:flex;flex-wrap:wrap;gap:0 1.5rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem;margin:1rem 0}
.cards figure{margin:0}.cards figcaption{font-size:.85em;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--band);padding:.7rem;border-radius:4px}
"""
COLOURS = ("#2563a8", "#b3401f", "#2f7d4a", "#7b3fa0", "#9a6b00", "#0f766e")  # of lines


def page(title: str, subtitle: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page from (heading, HTML) sections; an empty heading has none."""
    body = "".join(
        f"<section>{f'<h2>{escape(head)}</h2>' if head else ''}{html}</section>\n" for head, html in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p>\n{body}</body></html>\n'
    )


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1, faint: Iterable[int] = ()
) -> str:
    """A table of cells that are HTML already; the first ``text_columns`` are aligned left, rows ``faint`` are grey."""
    pale = set(faint)

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if column < text_columns else "" for column in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr{' class=faint' if i in pale else ''}>{line(row, 'td')}</tr>" for i, row in enumerate(rows))
    return f'<div class="wide"><table><thead><tr>{line(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(image: Image.Image, *, size: int, title: str, right: bool = False) -> str:
    """A small copy of a picture, within ``size`` pixels; the right ones are framed."""
    small = image.convert("RGB")
    small.thumbnail((2 * size, 2 * size))  # sharp on dense screens
    data = io.BytesIO()
    small.save(data, "WEBP", quality=75)
    width, height = (round(side * size / max(small.size)) for side in small.size)
    code = base64.b64encode(data.getvalue()).decode("ascii")
    name, kind = escape(title, quote=True), ' class="right"' if right else ""
    return (
        f'<img{kind} src="data:image/webp;base64,{code}" width="{width + 6}" height="{height + 6}" '
        f'alt="{name}" title="{name}">'
    )


def heat_map(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, cell: int = 22) -> str:
    """Cells from the lowest value (pale) to the highest (dark), each with its value and names on hover."""
    flat = [value for row in values for value in row]
    low, span = min(flat), (max(flat) - min(flat)) or 1.0
    left = 12 + 7 * max((_columns_of(name) for name in rows), default=0)
    width, height = left + cell * len(columns) + 4, cell * len(rows) + 4
    parts = []
    for y, (row, name) in enumerate(zip(values, rows, strict=True)):
        if name:
            place = f'x="{left - 8}" y="{cell * y + cell * 0.7:.1f}"'
            parts.append(f'<text {place} text-anchor="end">{escape(name)}</text>')
        for x, value in enumerate(row):
            hint = escape(f"{name} × {columns[x]}: {value:.3g}", quote=True)
            parts.append(
                f'<rect x="{left + cell * x}" y="{cell * y}" width="{cell - 1}" height="{cell - 1}" fill="#2563a8" '
                f'fill-opacity="{0.05 + 0.95 * (value - low) / span:.2f}"><title>{hint}</title></rect>'
            )
    return _drawing(width, height, parts)


def scatter(points: Sequence[tuple[float, float, str]], *, x: str, y: str, size: int = 340) -> str:
    """Points with shares in [0, 1] on both axes, the diagonal, and a name of each point on hover."""
    left, below, scale = 44, 34, size

    def at(horizontal: float, vertical: float) -> tuple[float, float]:
        return left + scale * horizontal, 8 + scale * (1 - vertical)

    parts = [_line(at(0, 0), at(1, 1)), _line(at(0, 0), at(1, 0)), _line(at(0, 0), at(0, 1))]
    for tick in (0, 0.5, 1):
        (across, bottom), (edge, up) = at(tick, 0), at(0, tick)
        parts.append(f'<text x="{across:.0f}" y="{bottom + 14:.0f}" text-anchor="middle">{100 * tick:.0f}</text>')
        parts.append(f'<text x="{edge - 6:.0f}" y="{up + 4:.0f}" text-anchor="end">{100 * tick:.0f}</text>')
    parts.append(f'<text x="{left + scale / 2:.0f}" y="{scale + below + 6}" text-anchor="middle">{escape(x)}</text>')
    middle = f'x="12" y="{8 + scale / 2:.0f}" text-anchor="middle" transform="rotate(-90 12 {8 + scale / 2:.0f})"'
    parts.append(f"<text {middle}>{escape(y)}</text>")
    for horizontal, vertical, name in points:
        across, up = at(horizontal, vertical)
        parts.append(
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="#2563a8" fill-opacity=".35">'
            f"<title>{escape(name)}</title></circle>"
        )
    return _drawing(left + scale + 12, scale + below + 12, parts)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, size: tuple[int, int] = (560, 240)) -> str:
    """Lines through the finite of (x, y) points, one for each name; a single line has no legend."""
    finite = {name: [point for point in line if math.isfinite(point[1])] for name, line in series.items()}
    series = {name: line for name, line in finite.items() if line}
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    (low_x, high_x), (low_y, high_y) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    (width, height), left = size, 60

    def at(across: float, up: float) -> tuple[float, float]:
        return (
            left + width * (across - low_x) / ((high_x - low_x) or 1),
            8 + height * (1 - (up - low_y) / ((high_y - low_y) or 1)),
        )

    parts = [_line((left, 8 + height), (left + width, 8 + height)), _line((left, 8), (left, 8 + height))]
    for tick in _ticks(low_y, high_y):
        _, y = at(low_x, tick)
        parts.append(_line((left, y), (left + width, y), kind="grid"))
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in _ticks(low_x, high_x):
        across, _ = at(tick, low_y)
        parts.append(f'<text x="{across:.1f}" y="{height + 24}" text-anchor="middle">{tick:,.6g}</text>')
    parts.append(f'<text x="{left + width / 2:.0f}" y="{height + 40}" text-anchor="middle">{escape(x)}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{across:.1f},{y:.1f}" for across, y in (at(*point) for point in line))
        shape = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        if len(line) == 1:
            across, y = at(*line[0])
            shape = f'<circle cx="{across:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        parts.append(shape)
        if len(series) > 1:
            key = f'x="{left + width + 12}" y="{20 + 16 * number}" style="fill:{colour}"'
            parts.append(f"<text {key}>{escape(name)}</text>")
    legend = 24 + 7 * max(map(_columns_of, series)) if len(series) > 1 else 24
    return _drawing(left + width + legend, max(height + 48, 24 + 16 * len(series)), parts)


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from ``low`` to ``high``; the value itself where both are the same."""
    if not low < high:
        return [low]
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _drawing(width: float, height: float, parts: Iterable[str]) -> str:
    return f'<div class="wide"><svg width="{width}" height="{height}" role="img">{"".join(parts)}</svg></div>'


def _line(start: tuple[float, float], end: tuple[float, float], kind: str = "axis") -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _columns_of(text: str) -> int:
    """Width in letters; those of Chinese and Japanese take two."""
    return sum(2 if ord(letter) >= 0x2E80 else 1 for letter in text)

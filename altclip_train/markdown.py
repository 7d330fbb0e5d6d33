"""Markdown out of words that anyone may have chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text(value: Any) -> str:
    """Plain words: one line, and no character that means something."""
    return re.sub(r"([\\`*{}\[\]<>#|~]|\b_|_\b)", r"\\\1", _one_line(value))


def code(value: Any) -> str:
    """A code span, also in a table, whatever backticks and pipes it holds."""
    words = _one_line(value)
    fence = "`" * (max(map(len, re.findall("`+", words)), default=0) + 1)
    space = " " if "`" in words else ""
    return f"{fence}{space}{words}{space}{fence}".replace("|", "\\|")


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())

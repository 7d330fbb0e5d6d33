"""The numbers of ``altclip data inspect`` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

LANGUAGES = 6  # columns of a table

# Label and value of each row; those on tokens only where texts were tokenized.
CAPTION_ROWS: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
    ("samples", lambda found: f"{found['samples']:,}"),
    ("texts", lambda found: f"{found['texts']:,}"),
    ("texts per sample", lambda found: f"{found['texts'] / found['samples']:.1f}"),
    ("not in its script", lambda found: _percent(found["other_script"] / found["texts"])),
    ("characters, median", lambda found: f"{found['characters']['median']:,}"),
    ("characters, 95 %", lambda found: f"{found['characters']['p95']:,}"),
    ("characters, most", lambda found: f"{found['characters']['greatest']:,}"),
    ("tokens, median", lambda found: f"{found['tokens']['median']:,}"),
    ("tokens, 95 %", lambda found: f"{found['tokens']['p95']:,}"),
    ("tokens, most", lambda found: f"{found['tokens']['greatest']:,}"),
    ("tokens cut at {max_length}", lambda found: _percent(found["truncated"])),
    ("tokens unknown", lambda found: _percent(found["unknown_tokens"])),
    ("tokens unknown, texts", lambda found: _percent(found["texts_with_unknown_tokens"])),
]


def print_inspection(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what :meth:`Inspection.as_json` returns."""
    console = console or Console()
    looked = "all of them" if found["looked_at"] == found["samples"] else f"{found['looked_at']:,} of them"
    console.print(f"[bold]{found['samples']:,} samples in {found['shards']:,} shards[/bold]; looked at {looked}")
    for problem in found["problems"]:
        console.print(f"  damaged: {problem}", markup=False)
    if found["captions"]:
        languages = list(found["captions"].items())
        for first in range(0, len(languages), LANGUAGES):
            console.print(_caption_table(dict(languages[first : first + LANGUAGES])))
    if found["pictures"]["count"]:
        console.print(_picture_table(found["pictures"]))
    if found["labelled"]:
        console.print(f"{found['labelled']:,} samples have a class number instead of captions")
    repeats = found["repeated"]
    console.print(
        f"exact repeats among those looked at: {repeats['samples']:,} samples, {repeats['pictures']:,} pictures"
    )
    if not found["bad"]:
        console.print("no bad sample")
        return
    table = Table("bad samples", "", "such as", title_justify="left")
    for reason, bad in found["bad"].items():
        table.add_row(reason, f"{bad['samples']:,}", bad["such_as"])
    console.print(table)


def _caption_table(captions: Mapping[str, Any]) -> Table:
    """A column for each language."""
    table = Table("captions", title_justify="left")
    for language in captions:
        table.add_column(language, justify="right")
    for name, value in CAPTION_ROWS:
        some = next(iter(captions.values()))
        if "tokens" in some or not name.startswith("tokens"):
            label = name.format(max_length=some.get("max_length"))
            table.add_row(label, *(value(numbers) for numbers in captions.values()))
    return table


def _picture_table(pictures: Mapping[str, Any]) -> Table:
    table = Table("pictures", "", show_header=True)
    table.add_row("number", f"{pictures['count']:,}")
    table.add_row("mean size", f"{pictures['mean_bytes'] / 1000:,.1f} kB")
    table.add_row("formats", ", ".join(f"{name} {count:,}" for name, count in pictures["formats"].items()))
    table.add_row("modes", ", ".join(f"{name} {count:,}" for name, count in pictures["modes"].items()))
    table.add_row("width", _spread(pictures["width"]))
    table.add_row("height", _spread(pictures["height"]))
    return table


def _spread(numbers: Mapping[str, float]) -> str:
    return f"{numbers['least']:,} to {numbers['greatest']:,}, median {numbers['median']:,}"


def _percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2f} %"

"""The tables and the plot of README.md, from the results beside it: ``python benchmarks/tables.py``.

A result is what a comparison wrote with ``--json results/NAME.json``. Its tables stand in README.md between the lines
``<!-- NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altclip_train import markdown

HERE = Path(__file__).parent
PLACE = re.compile(r"<!-- (?P<name>[a-z]\w*) -->\n.*?<!-- end -->\n", re.DOTALL)


def render(result: Mapping[str, Any]) -> str:
    """Title, what was measured on what, a table of the sides and one of the comparisons."""
    facts = [*result["machine"].items(), *result["versions"].items()]
    facts += [(name, value) for name, value in result["facts"].items() if name != "not_applicable"]
    parts = [f"**{result['title']}**\n", f"{'; '.join(f'{_words(k)} {_fact(v)}' for k, v in facts)}\n"]
    if reason := result["facts"].get("not_applicable"):
        parts.append(f"Not applicable: {reason}.\n")
    sides = [_side(name, side) for name, side in result["sides"].items() if side["unit"]]
    if sides:
        unit = next(side["unit"] for side in result["sides"].values())
        parts.append(markdown.table(["side", f"{unit} a second", "peak memory, MiB"], sides))
    parts.append(markdown.table(["", "measured", "by CPU time", "aim", ""], map(_row, result["rows"])))
    return "\n".join(parts)


def met(row: Mapping[str, Any]) -> bool | None:
    """Whether a row reaches its aim; None without either."""
    if row["aim"] is None or not row["values"]:
        return None
    value = statistics.median(row["values"])
    return value <= row["aim"] if row.get("at_most") else value >= row["aim"]


def with_tables(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A page with the tables of these results in their places; other places stay as they are."""

    def filled(place: re.Match[str]) -> str:
        result = results.get(place["name"])
        return place[0] if result is None else f"<!-- {place['name']} -->\n{render(result)}<!-- end -->\n"

    return PLACE.sub(filled, page)


def load(directory: Path) -> dict[str, dict[str, Any]]:
    """Results by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))}


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """How many times as fast as each peer, where there is an aim or a GPU: median and range of the rounds."""
    from matplotlib.figure import Figure

    rows = [
        (f"{_short_title(result)}: {row['what']}", row)
        for result in results.values()
        for row in result["rows"]
        if row["unit"] == "times" and row["values"] and (row["aim"] is not None or _on_gpu(result))
    ]
    figure = Figure(figsize=(11, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, row) in enumerate(rows):
        median, low, high = statistics.median(row["values"]), min(row["values"]), max(row["values"])
        colour = "tab:red" if met(row) is False else "tab:blue"
        axes.errorbar(median, place, xerr=[[median - low], [high - median]], fmt="o", color=colour, capsize=3)
        axes.annotate(f"{median:.2f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center", size=8)
        if row["aim"] is not None:
            axes.plot([row["aim"]] * 2, [place - 0.35, place + 0.35], color="black", linewidth=2, zorder=0)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], size=8)
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlabel(
        "times as much time or memory as altclip_train\nmedian and range of rounds; black: aim; red: missed"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=90)


def _short_title(result: Mapping[str, Any]) -> str:
    batch = result["facts"].get("batch")
    title = result["title"].removesuffix(", float32") + (f", batch {batch}" if isinstance(batch, int) else "")
    return f"GPU: {title}" if _on_gpu(result) else title


def _on_gpu(result: Mapping[str, Any]) -> bool:
    return "(CUDA" in result["machine"]["device"]


def _side(name: str, side: Mapping[str, Any]) -> list[str]:
    rates = [side["per_round"] / seconds for seconds in side["seconds"]]
    return [markdown.code(name), _spread(rates, ""), f"{side['peak_bytes'] / 2**20:,.0f}"]


def _row(row: Mapping[str, Any]) -> list[str]:
    unit = " x" if row["unit"] == "times" else f" {row['unit']}"
    word = {True: "met", False: "**missed**", None: ""}[met(row)]
    if not row["values"]:
        return [row["what"], "not applicable", "", _aim(row, unit), ""]
    cpu = _spread(row["cpu"], unit) if "cpu" in row else ""
    return [row["what"], _spread(row["values"], unit), cpu, _aim(row, unit), word]


def _aim(row: Mapping[str, Any], unit: str) -> str:
    if row["aim"] is None:
        return ""
    return f"{'at most' if row.get('at_most') else 'at least'} {row['aim']:,g}{unit}"


def _spread(values: list[float], unit: str) -> str:
    """Median with the range of all values."""
    digits = 0 if statistics.median(values) >= 100 else 1 if statistics.median(values) >= 20 else 2
    median, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median}{unit}" if len(values) == 1 else f"{median}{unit} ({low} to {high})"


def _fact(value: Any) -> str:
    return f"{min(value):,} to {max(value):,}" if isinstance(value, list) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    results = load(HERE / "results")
    page = HERE / "README.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    plot(results, HERE / "results" / "ratios.png")


if __name__ == "__main__":
    main()

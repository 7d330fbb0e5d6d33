"""The tables of docs/evaluation.md are the registry's, and its commands name what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from altclip_train.evaluation.known_benchmarks import KNOWN
from altclip_train.evaluation.protocols import KnownBenchmark

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
MANY = 12  # languages; more are counted


def benchmark_row(known: KnownBenchmark) -> str:
    protocols: dict[str, list[str]] = {}  # by their counts
    for protocol in known.protocols:
        counts = ", ".join(f"{count:,} {what}" for what, count in protocol.counts.items())
        many = len(protocol.languages) > MANY
        languages = f"{len(protocol.languages)} languages" if many else " ".join(protocol.languages)
        protocols.setdefault(counts, []).append(f"`{protocol.id}`" + f" ({languages})" * bool(languages))
    cells = [", ".join(found) + f": {counts}" * bool(counts) for counts, found in protocols.items()]
    return f"| `{known.name}` | {known.title} | {'<br>'.join(cells)} | {known.source} | {known.licence} |"


def protocol_rows() -> list[str]:
    """A row for each id, whatever the number of benchmarks that have it."""
    rows = [f"| `{protocol.id}` | {protocol.description} |" for known in KNOWN.values() for protocol in known.protocols]
    return list(dict.fromkeys(rows))


def trap_rows(known: KnownBenchmark) -> Iterator[str]:
    for trap in ([known.warning] if known.warning else []) + list(known.traps):
        yield f"| `{known.name}` | {trap} |"


def table(heading: str) -> list[str]:
    """Rows of the table below a heading, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def test_table_of_benchmarks_is_the_registry() -> None:
    assert table("Benchmarks") == [benchmark_row(known) for known in KNOWN.values()]


def test_table_of_protocols_is_the_registry() -> None:
    rows = protocol_rows()
    assert table("Protocols") == rows
    ids = [row.split("`")[1] for row in rows]
    assert len(set(ids)) == len(ids)  # one id means one thing


def test_table_of_traps_is_the_registry() -> None:
    assert table("Traps") == [row for known in KNOWN.values() for row in trap_rows(known)]


@pytest.mark.parametrize("kind", ["eval", "fetch-help"])
def test_commands_name_benchmarks_that_there_are(kind: str) -> None:
    found = re.findall(r"eval\.(\w+)\." if kind == "eval" else r"fetch-help ([a-z]\w*)", PAGE)
    assert found
    assert set(found) <= KNOWN.keys()

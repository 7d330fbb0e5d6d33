"""The page of one run, and that of several side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from altclip_train import html
from altclip_train.files import written_whole
from altclip_train.model_card import STAGES, UNKNOWN, Scores, reading_order, recipe, scores_by_kind, sources
from altclip_train.report.figures import Points, figures, write_png
from altclip_train.report.record import RunRecord, Sample, read_record

REPORT, PLOTS = "report.html", "curves.png"
SIZE = (400, 180)  # of a figure
UNSET = "(not set)"


def write_report(run: Path, *, plots: bool = True) -> Path:
    """Write ``report.html`` of a run directory from what it holds, and ``curves.png``."""
    record = read_record(run)
    drawn = figures(record.metrics)
    state = f"{_state(record)}; written {datetime.now():%Y-%m-%d %H:%M:%S}"
    sections = [
        ("", _setup(record)),
        ("Curves", _curves(drawn)),
        ("Evaluation", _evaluation(record)),
        ("Training samples", _samples(record.samples)),
        ("Samples that could not be used", _bad_samples(record)),
        ("Recipe", _rows(recipe(record.facts))),
        ("Data", _data(record)),
        ("Environment", _rows(record.document.get("environment", {}))),
        ("How to repeat it", _reproduce(record)),
    ]
    if plots and drawn:
        write_png(run / PLOTS, drawn, f"{record.facts.name}, {_state(record)}")
    return _write(run / REPORT, html.page(f"Run {_name(run)}", state, [(h, body) for h, body in sections if body]))


def write_comparison(directories: Sequence[Path], target: Path) -> Path:
    """Write one page about several runs: what differs between them, their scores and curves on the same axes.

    Raises ValueError for more runs than there are letters.
    """
    if len(directories) > len(ascii_uppercase):
        raise ValueError(f"{len(directories)} runs: a page compares at most {len(ascii_uppercase)}")
    records = dict(zip(ascii_uppercase, map(read_record, directories), strict=False))
    sections = [
        ("Runs", _overview(records)),
        ("Settings that differ", _differences(records)),
        ("Scores", _scores_side_by_side(records)),
        ("Curves", _curves(_overlaid(records))),
    ]
    title = "; ".join(f"{letter}: {_name(record.directory)}" for letter, record in records.items())
    return _write(target, html.page("Comparison of runs", title, [(h, body) for h, body in sections if body]))


def _write(target: Path, page: str) -> Path:
    with written_whole(target) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return target


def _name(run: Path) -> str:
    run = run.resolve()
    return f"{run.parent.name}/{run.name}"


def _state(record: RunRecord) -> str:
    step = UNKNOWN if record.step is None else f"{record.step:,}"
    return f"finished after {step} steps" if record.finished else f"not finished, at step {step}"


def _setup(record: RunRecord) -> str:
    """The run in sentences."""
    facts, batch = record.facts, record.facts.config["data"].get("global_batch_size")
    counts: Mapping[str, Mapping[str, int]] = record.document.get("parameters", {})
    trained = [f"{name} ({_millions(part['trainable'])})" for name, part in counts.items() if part["trainable"]]
    frozen = [f"{name} ({_millions(part['frozen'])})" for name, part in counts.items() if part["frozen"]]
    # What has a start takes everything from there.
    start = record.document.get("start")
    bases = [f"{key} {record.document[key]}" for key in ("clip", "student") if record.document.get(key) is not None]
    bases = bases if start is None else [start]
    devices = record.document.get("environment", {}).get("devices")
    lines = [
        f"{STAGES.get(facts.stage, facts.stage)}.",
        f"It starts from {', '.join(bases)}." if bases else "It starts from random weights.",
        f"Trained: {', '.join(trained)} parameters." if trained else "",
        f"Frozen: {', '.join(frozen)}." if frozen else "",
        f"Languages: {', '.join(facts.languages)}." if facts.languages else "",
        f"Batches of {batch:,} over {devices}." if batch and devices else "",
    ]
    return html.paragraph(" ".join(filter(None, lines)))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 100_000 else f"{count:,}"


def _curves(drawn: Mapping[str, Mapping[str, Points]]) -> str:
    parts = []
    for title, lines in drawn.items():
        last = [points[-1][1] for points in lines.values()]
        value = f" <small>last {last[0]:.4g}</small>" if len(last) == 1 else ""
        parts.append(f"<div><h3>{escape(title)}{value}</h3>{html.curves(lines, x='step', size=SIZE)}</div>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def _evaluation(record: RunRecord) -> str:
    facts = record.facts
    parts = []
    for metrics, kind in scores_by_kind(facts.scores).items():
        rows = [
            [escape(one.benchmark), escape(one.language), escape(one.split or UNKNOWN), *_percents(one, metrics)]
            for one in kind
        ]
        head = ["benchmark", "language", "split", *map(_heading, metrics)]
        parts.append(html.table(head, rows, text_columns=3))
    if (record.directory / "results.html").is_file():
        parts.append('<p><a href="results.html">results.html</a>: what queries find, confusions, intervals</p>')
    note = html.paragraph("Percent; the last ones that the run recorded.", "faint") if parts else ""
    return note + "".join(parts)


def _percents(scores: Scores, metrics: Iterable[str]) -> list[str]:
    return [f"{100 * scores.metrics[metric]:.1f}" for metric in metrics]


def _heading(metric: str) -> str:
    words = metric.replace("text_to_image", "text→image").replace("image_to_text", "image→text")
    return escape(words).replace("_", " ")


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    cards = []
    for sample in samples:
        picture = "" if sample.picture is None else html.picture(sample.picture, size=160, title=sample.key)
        said = "".join(
            f'<div><span class="tag">{escape(code)}</span> <span lang="{escape(code)}">{escape(texts[0])}</span></div>'
            for code, texts in sample.captions.items()
        )
        where = f"<small>{escape(sample.key)} · {escape(sample.source)}</small>"
        cards.append(f"<figure>{picture}<figcaption>{said}{where}</figcaption></figure>")
    note = "The first samples of the training order, each with its first caption in every language."
    return f'{html.paragraph(note, "faint")}<div class="cards">{"".join(cards)}</div>'


def _bad_samples(record: RunRecord) -> str:
    if not record.bad_samples:
        return html.paragraph("None so far." if not record.finished else "None.")
    rows = [
        [escape(reason), f"{samples:,}", UNKNOWN if visits is None else f"{visits:,}", escape(example)]
        for reason, visits, samples, example in record.bad_samples
    ]
    return html.table(["reason", "samples", "times met", "such as"], rows, text_columns=1)


def _rows(values: Mapping[str, Any]) -> str:
    return (
        html.table(["", ""], [[escape(k), escape(str(v))] for k, v in values.items()], text_columns=2) if values else ""
    )


def _data(record: RunRecord) -> str:
    rows = [
        [
            "<br>".join(f"<code>{escape(url)}</code>" for url in source.urls),
            UNKNOWN if source.samples is None else f"{source.samples:,}",
            "by its samples" if source.weight is None else f"{source.weight:g}",
            escape(", ".join(source.languages) or "those of the run"),
        ]
        for source in sources(record.facts)
    ]
    return html.table(["source", "samples", "weight", "languages"], rows) if rows else ""


def _reproduce(record: RunRecord) -> str:
    document = record.document
    hashes = {f"sha256 of {name}": digest or "a hub id" for name, digest in document.get("sha256", {}).items()}
    rows = {
        **{name: value or UNKNOWN for name, value in record.facts.software.items()},
        **({"data": document["data_fingerprint"]} if "data_fingerprint" in document else {}),
        **hashes,
    }
    line = f"<pre>{escape(document['command'])}</pre>" if "command" in document else ""
    note = html.paragraph("config.yaml beside this page has every setting.", "faint")
    return line + note + _rows(rows)


def _overview(records: Mapping[str, RunRecord]) -> str:
    rows = []
    for letter, record in records.items():
        counts = record.document.get("parameters", {}).values()
        loss = record.metrics.get("train/loss")
        rows.append(
            [
                letter,
                escape(str(record.directory)),
                escape(record.facts.stage),
                escape(_state(record)),
                _millions(sum(part["trainable"] for part in counts)) if counts else UNKNOWN,
                f"{loss[-1][1]:.4g}" if loss else UNKNOWN,
                f"<code>{escape(str(record.document.get('data_fingerprint', UNKNOWN))[:12])}</code>",
                f"<code>{escape(str(record.facts.software.get('commit') or UNKNOWN)[:12])}</code>",
            ]
        )
    head = ["", "run", "stage", "state", "trainable", "last loss", "data", "commit"]
    return html.table(head, rows, text_columns=4)


def _differences(records: Mapping[str, RunRecord]) -> str:
    settings = {letter: dict(_flat(record.facts.config)) for letter, record in records.items()}
    keys = list(dict.fromkeys(key for one in settings.values() for key in one))
    rows = [[key, *(str(one.get(key, UNSET)) for one in settings.values())] for key in keys]
    different = [[escape(cell) for cell in row] for row in rows if len(set(row[1:])) > 1]
    if not different:
        return html.paragraph("None.")
    return html.table(["setting", *records], different, text_columns=1 + len(records))


def _flat(node: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and their values."""
    if not isinstance(node, Mapping) or not node:
        yield path, node
        return
    for key, value in node.items():
        # Each run has a directory of its own, which stands in many places.
        if not (isinstance(value, str) and key in ("directory", "dirpath", "default_root_dir", "save_dir")):
            yield from _flat(value, f"{path}.{key}" if path else str(key))


def _scores_side_by_side(records: Mapping[str, RunRecord]) -> str:
    """One row for each score that a run has; the best in bold."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for letter, record in records.items():
        for one in record.facts.scores:
            for metric in sorted(one.metrics, key=reading_order):
                key = (one.benchmark + (f" ({one.split})" if one.split else ""), one.language, metric)
                found.setdefault(key, {})[letter] = one.metrics[metric]
    rows = []
    for (benchmark, language, metric), values in found.items():
        best, worst = max(values.values()), min(values.values())
        cells = [f"{100 * values[letter]:.1f}" if letter in values else "" for letter in records]
        marks = [values.get(letter) == best > worst for letter in records]
        cells = [f"<b>{cell}</b>" if mark else cell for cell, mark in zip(cells, marks, strict=True)]
        rows.append([escape(benchmark), escape(language), _heading(metric), *cells])
    return html.table(["benchmark", "language", "metric", *records], rows, text_columns=3) if rows else ""


def _overlaid(records: Mapping[str, RunRecord]) -> dict[str, dict[str, Points]]:
    """Figures with the lines of all runs, each named by its run, and by its metric where that is not clear."""
    own = {letter: figures(record.metrics) for letter, record in records.items()}
    overlaid: dict[str, dict[str, Points]] = {}
    for title in dict.fromkeys(title for drawn in own.values() for title in drawn):
        lines = {letter: drawn.get(title, {}) for letter, drawn in own.items()}
        single = all(len(line) <= 1 for line in lines.values())
        overlaid[title] = {
            letter if single else f"{letter} {name}": points
            for letter, line in lines.items()
            for name, points in line.items()
        }
    return overlaid

"""``results.html``: an evaluation as one page, with what scores do not show."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from altclip_train import html
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.published import published_for
from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.evaluation.retrieval import RetrievalOutcome
from altclip_train.evaluation.zero_shot import ZeroShotOutcome
from altclip_train.files import written_whole

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL = 88
CONFUSIONS, GAPS = 15, 12
MATRIX = 40  # classes of which the whole matrix of confusions can be looked at
Results = Mapping[str, Sequence[BenchmarkResult]]  # of each model, by its letter


def write_page(path: Path, models: Mapping[str, str], results: Results, benchmarks: Mapping[str, Benchmark]) -> Path:
    """Write the page of one or several models, each with its directory by the same letter as its results."""
    sections = [("Scores", _scores(models, results)), ("Beside published scores", _published(results))]
    by_name = {benchmark.name: benchmark for benchmark in benchmarks.values()}
    for letter, own in results.items():
        title = f"{letter}: " if len(results) > 1 else ""
        for name in dict.fromkeys(result.benchmark for result in own):
            languages = [result for result in own if result.benchmark == name]
            if languages[0].examples is not None:
                sections.append((f"{title}{name}: what queries find", _sheet(languages, by_name[name])))
                sections.append((f"{title}{name}: similarity", _similarity(languages)))
            if isinstance(languages[0].outcome, ZeroShotOutcome):
                sections.append((f"{title}{name}: classes", _classes(languages)))
        if curves := _learning_curves(Path(models[letter])):
            sections.append((f"{title}learning curves", curves))
    subtitle = "; ".join(f"{letter}: {model}" if len(models) > 1 else model for letter, model in models.items())
    with written_whole(path) as partial:
        shown = [(head, body) for head, body in sections if body]
        partial.write_text(html.page("Evaluation", subtitle, shown), encoding="utf-8")
    return path


def _scores(models: Mapping[str, str], results: Results) -> str:
    kinds: dict[tuple[str, ...], dict[str, list[tuple[str, BenchmarkResult]]]] = {}
    for letter, own in results.items():
        for result in own:
            kinds.setdefault(tuple(result.metrics), {}).setdefault(result.name, []).append((letter, result))
    parts = [html.paragraph("Percent; below each score its 95 % interval, from a bootstrap over pictures.", "faint")]
    several = len(models) > 1
    for metrics, groups in kinds.items():
        rows, faint = [], []
        for group, following in zip_longest(groups.values(), list(groups.values())[1:]):
            for letter, result in group:
                cells = [_score(result, metric) for metric in metrics]
                rows.append([*_key(result), *([letter] if several else []), *cells, *_medians(result)])
            last = group[-1][1]
            if following is None or not _same_chance(last, following[0][1]):
                faint.append(len(rows))
                cells = [f"{100 * last.chance[metric]:.1f}" if metric in last.chance else "" for metric in metrics]
                rows.append(["", "", "chance", *([""] if several else []), *cells, *([""] * len(_medians(last)))])
        medians = list(next(iter(groups.values()))[0][1].median_ranks)
        head = ["benchmark", "language", "protocol", *(["model"] if several else []), *map(_heading, metrics)]
        head += [f"{_heading(name)}<br>median rank" for name in medians]
        parts.append(html.table(head, rows, text_columns=4 if several else 3, faint=faint))
    parts.append(_data({result.name: result for own in results.values() for result in own}))
    return "".join(parts)


def _same_chance(result: BenchmarkResult, other: BenchmarkResult) -> bool:
    return (result.benchmark, result.chance) == (other.benchmark, other.chance)


def _key(result: BenchmarkResult) -> list[str]:
    return [escape(result.benchmark), escape(result.language), escape(result.protocol)]


def _medians(result: BenchmarkResult) -> list[str]:
    return [f"{value:g}" for value in result.median_ranks.values()]


def _score(result: BenchmarkResult, metric: str) -> str:
    score = f"{100 * result.metrics[metric]:.1f}"
    if metric not in result.intervals:
        return score
    low, high = result.intervals[metric]
    return f"{score}<small>{100 * low:.1f}–{100 * high:.1f}</small>"


def _heading(metric: str) -> str:
    return (
        escape(metric).replace("text_to_image", "text→image").replace("image_to_text", "image→text").replace("_", " ")
    )


def _data(results: Mapping[str, BenchmarkResult]) -> str:
    rows = [
        [
            escape(name),
            ", ".join(f"{count:,} {escape(what)}" for what, count in result.counts.items()),
            escape(result.description),
            f"<code>{escape(result.data_sha256[:12])}</code>",
        ]
        for name, result in results.items()
    ]
    return "<h3>Data</h3>" + html.table(["benchmark", "counts", "protocol", "sha256"], rows, text_columns=4)


def _published(results: Results) -> str:
    """Published rows of the same benchmarks; those that may not be compared say why and show no number."""
    rows, faint = [], []
    for result in {result.name: result for own in results.values() for result in own}.values():
        for row in published_for(result):
            if obstacle := row.obstacle(result):
                faint.append(len(rows))
                rows.append([result.name, row.model, "", "", escape(f"not comparable: {obstacle}"), row.source])
                continue
            for metric, value in row.metrics.items():
                ours = ", ".join(
                    f"{100 * own.metrics[metric]:.1f}"
                    for each in results.values()
                    for own in each
                    if own.name == result.name
                )
                rows.append([result.name, row.model, _heading(metric), f"{100 * value:.1f}", ours, row.source])
    head = ["benchmark", "model", "metric", "published", "ours", "source"]
    return html.table(head, rows, text_columns=3, faint=faint) if rows else ""


def _sheet(results: Sequence[BenchmarkResult], benchmark: Benchmark) -> str:
    """Each example picture with its caption in every language, and what both found."""
    found = [result.examples for result in results if result.examples is not None]
    shown = {int(i) for examples in found for i in [*examples.pictures, *examples.found_pictures.flatten()]}
    pictures = benchmark.show(sorted(shown))
    parts = [
        html.paragraph(
            f"Pictures at even distances. Each row: the first caption in a language and the pictures that it finds, "
            f"best first, the right one framed; then the texts that the picture finds, the right ones in green. "
            f"{_languages(results)}",
            "faint",
        )
    ]
    for place, number in enumerate(_integers(found[0].pictures)):
        name = results[0].pictures[number]
        answers = "".join(_answer(result, place, number, pictures) for result in results)
        own = html.picture(pictures[number], size=THUMBNAIL, title=name)
        parts.append(f'<div class="query"><div>{own}<small>{escape(name)}</small></div><div>{answers}</div></div>')
    return f'<div class="sheet">{"".join(parts)}</div>'


def _answer(result: BenchmarkResult, place: int, number: int, pictures: Mapping[int, Image.Image]) -> str:
    examples = result.examples
    assert examples is not None
    assert isinstance(result.outcome, RetrievalOutcome)
    caption = result.texts[int(examples.captions[place])]
    row = "".join(
        html.picture(pictures[other], size=THUMBNAIL, title=result.pictures[other], right=other == number)
        for other in _integers(examples.found_pictures[place])
    )
    texts = "".join(
        f"<li{' class=right' if int(result.outcome.text_to_image[text]) == number else ''}>"
        f"{escape(result.texts[text])}</li>"
        for text in _integers(examples.found_texts[place])
    )
    code = escape(result.language)
    said = f'<span class="tag">{code}</span> <span lang="{code}">{escape(caption)}</span>'
    words = f'<div>{said}<ol lang="{code}"><small>{texts}</small></ol></div>'
    return f'<div class="answer">{words}<div class="row">{row}</div></div>'


def _languages(results: Sequence[BenchmarkResult]) -> str:
    return "Languages: " + ", ".join(result.language for result in results) + "."


def _similarity(results: Sequence[BenchmarkResult]) -> str:
    parts = [
        html.paragraph("Captions (rows) and their pictures (columns): a good model is dark on the diagonal.", "faint")
    ]
    for result in results:
        examples = result.examples
        if examples is None:
            continue
        captions = [_short(result.texts[text]) for text in _integers(examples.heat_captions)]
        names = [result.pictures[number] for number in _integers(examples.heat_pictures)]
        parts.append(f"<h3>{escape(result.language)}</h3>")
        parts.append(html.heat_map(examples.similarity.tolist(), captions, names))
    return "".join(parts)


def _classes(results: Sequence[BenchmarkResult]) -> str:
    parts = []
    english = next((result for result in results if result.language == "en"), None)
    others = [result for result in results if result is not english]
    for other in others if english is not None else []:
        assert english is not None
        parts.append(_accuracies(english, other))
    for result in results:
        parts.append(f"<h3>{escape(result.language)}: most frequent confusions</h3>{_confusions(result)}")
    return "".join(parts)


def _class_accuracies(result: BenchmarkResult) -> dict[int, float]:
    outcome = result.outcome
    assert isinstance(outcome, ZeroShotOutcome)
    right, total = (
        torch.bincount(outcome.labels, weights=weights, minlength=len(result.texts))
        for weights in ((outcome.ranks == 0).double(), torch.ones(len(outcome.labels), dtype=torch.float64))
    )
    return {label: (right[label] / total[label]).item() for label in total.nonzero().flatten().tolist()}


def _accuracies(english: BenchmarkResult, other: BenchmarkResult) -> str:
    """Accuracy of each class in both languages as points, and the classes that differ most."""
    first, second = _class_accuracies(english), _class_accuracies(other)
    names = {label: f"{english.texts[label]} / {other.texts[label]}" for label in first if label in second}
    points = [
        (first[label], second[label], f"{name}: {100 * first[label]:.0f}, {100 * second[label]:.0f}")
        for label, name in names.items()
    ]
    gaps = sorted(names, key=lambda label: (-abs(first[label] - second[label]), label))[:GAPS]
    rows = [
        [escape(names[label]), f"{100 * first[label]:.0f}", f"{100 * second[label]:.0f}"]
        for label in gaps
        if first[label] != second[label]
    ]
    plot = html.scatter(points, x="en, % of a class", y=f"{other.language}, %")
    table = html.table(["class", "en", escape(other.language)], rows) if rows else ""
    head = f"<h3>Accuracy of each class, en and {escape(other.language)}; the largest differences</h3>"
    return f'{head}<div class="row">{plot}{table}</div>'


def _confusions(result: BenchmarkResult) -> str:
    outcome = result.outcome
    assert isinstance(outcome, ZeroShotOutcome)
    labels, guesses = _integers(outcome.labels), _integers(outcome.predictions)
    pairs = Counter(zip(labels, guesses, strict=True))
    if len(result.texts) <= MATRIX:
        classes = range(len(result.texts))
        values = [[pairs[label, guess] for guess in classes] for label in classes]
        return html.heat_map(values, [_short(name) for name in result.texts], result.texts, cell=16)
    wrong = [(count, label, guess) for (label, guess), count in pairs.items() if label != guess]
    pictures = Counter(labels)
    rows = [
        [escape(result.texts[label]), escape(result.texts[guess]), f"{count} of {pictures[label]}"]
        for count, label, guess in sorted(wrong, key=lambda pair: (-pair[0], pair[1], pair[2]))[:CONFUSIONS]
    ]
    return html.table(["class", "taken for", "pictures"], rows, text_columns=2) if rows else html.paragraph("None.")


def _learning_curves(model: Path) -> str:
    """Losses and scores that the run of this model logged; empty for a model without a run."""
    file = model.parent / "metrics.csv"
    if not file.is_file():
        return ""
    series: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            for name, value in row.items():
                if value and row.get("step") and (name.endswith("loss") or name.count("/") == 2):
                    series.setdefault(name, []).append((float(row["step"]), float(value)))
    losses = {name: line for name, line in series.items() if name.endswith("loss")}
    scores = {name: line for name, line in series.items() if name not in losses and len(line) > 1}
    wanted = {name: line for name, line in scores.items() if name.endswith(("R@1", "top1", "mAP"))}
    return html.curves(losses, x="step") + html.curves(wanted, x="step")


def _short(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _integers(tensor: torch.Tensor) -> list[int]:
    return tensor.tolist()

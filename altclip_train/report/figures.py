"""Which of a run's metrics are drawn, and how: as SVG in the page, as PNG beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from altclip_train.files import written_whole
from altclip_train.html import COLOURS

Points: TypeAlias = Sequence[tuple[float, float]]
Series: TypeAlias = Mapping[str, Points]
DRAWN = 400  # points of a line: of more, neighbours are averaged


class Figure(NamedTuple):
    title: str
    metrics: str  # a pattern of whole names


FIGURES = (
    Figure("Loss", r"train/loss"),
    Figure("Learning rate", r"lr-.*"),
    Figure("logit_scale", r"train/logit_scale"),
    Figure("Validation: cosine to the teacher", r"val/\w+_cosine"),
    Figure("Validation: squared error", r"val/\w+_mse"),
    Figure("Spread of the student's vectors, of the teacher's", r"train/spread"),
    Figure("Share of captions that a batch has more than once", r"train/duplicate_captions"),
    Figure("Samples per second", r"throughput/samples_per_second"),
    Figure("Share of the time spent waiting for data", r"throughput/data_wait"),
    Figure("Text tokens per second", r"throughput/tokens_per_second"),
    Figure("TFLOP/s", r"throughput/tflops"),
    Figure("Share of the peak FLOP/s", r"throughput/mfu"),
)
SCORES = Figure("Benchmarks while training", r"[^/]+/[^/]+/(.*R@1|top1|mAP)")
NOT_DRAWN = r"epoch|data/skipped.*|val/skipped"


def figures(metrics: Series) -> dict[str, dict[str, Points]]:
    """By title, the lines of each figure; every logged metric is in one, but for those in tables of the page."""
    drawn: dict[str, dict[str, Points]] = {}
    known = re.compile("|".join(figure.metrics for figure in (*FIGURES, SCORES)))
    for figure in FIGURES:
        found = {name: points for name, points in metrics.items() if re.fullmatch(figure.metrics, name)}
        drawn[figure.title] = _different(found)
    scores = {name: points for name, points in metrics.items() if re.fullmatch(SCORES.metrics, name)}
    drawn[SCORES.title] = {name: points for name, points in scores.items() if len(points) > 1}
    for name, points in metrics.items():
        if name.count("/") < 2 and not known.fullmatch(name) and not re.fullmatch(NOT_DRAWN, name):
            drawn[name] = {name: points}
    return {title: {name: _thinned(line) for name, line in lines.items()} for title, lines in drawn.items() if lines}


def write_png(path: Path, drawn: Mapping[str, Series], title: str) -> Path:
    """All figures in one picture."""
    columns = 2
    rows = -(-len(drawn) // columns)
    picture = Drawing(figsize=(12, 0.6 + 3 * rows), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title)
    for number, (name, lines) in enumerate(drawn.items()):
        axes = picture.add_subplot(rows, columns, number + 1, title=name, xlabel="step")
        for colour, (label, points) in zip(COLOURS * len(lines), lines.items(), strict=False):
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="." if len(points) == 1 else "")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="x-small")
    with written_whole(path) as partial:
        picture.savefig(partial, format="png", dpi=80)
    return path


def _different(lines: Series) -> dict[str, Points]:
    """Without lines that lie exactly on an earlier one, as the learning rates of all groups do."""
    kept: dict[str, Points] = {}
    for name, points in lines.items():
        if points not in kept.values():
            kept[name] = points
    return kept


def _thinned(points: Points) -> Points:
    """At most `DRAWN` points; each the mean of as many neighbours."""
    size = -(-len(points) // DRAWN)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]

"""Two models on the same benchmarks: what differs, whether it could be chance, and which samples changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.evaluation.retrieval import RetrievalOutcome
from altclip_train.evaluation.statistics import Difference, McNemar, mcnemar, paired_differences
from altclip_train.evaluation.zero_shot import ZeroShotOutcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Second model against the first, on one benchmark in one language.

    ``pictures`` is McNemar's test of the first answer to each picture: its class, or its best text. Captions of one
    picture are not independent, so text to image has the paired bootstrap alone.
    """

    benchmark: str
    language: str
    differences: dict[str, Difference]
    pictures: McNemar | None
    lost: list[str]  # samples that only the first model gets right, in words
    gained: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "language": self.language,
            "differences": {name: change._asdict() for name, change in self.differences.items()},
            "pictures": self.pictures and self.pictures._asdict(),
            "lost": self.lost,
            "gained": self.gained,
        }


def compare(first: Sequence[BenchmarkResult], second: Sequence[BenchmarkResult]) -> list[Comparison]:
    """Compare what both models were evaluated on.

    Raises ValueError when they share no benchmark, or when one was evaluated on other data or by another protocol.
    """
    others = {result.name: result for result in second}
    shared = [(result, others[result.name]) for result in first if result.name in others]
    if not shared:
        names = [", ".join(result.name for result in results) or "nothing" for results in (first, second)]
        raise ValueError(f"the models share no benchmark: one has {names[0]}, the other {names[1]}")
    return [_compare(*pair) for pair in shared]


def _compare(first: BenchmarkResult, second: BenchmarkResult) -> Comparison:
    for what in ("protocol", "data_sha256"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise ValueError(f"{first.name} cannot be compared: {what} is {one} in one and {other} in the other")
    if first.outcome is None or second.outcome is None or type(first.outcome) is not type(second.outcome):
        raise ValueError(f"{first.name} cannot be compared: what happened to each sample is not recorded in both")
    before, after = _right(first), _right(second)
    pictures = mcnemar(*(_right_pictures(result) for result in (first, second))) if before is not None else None
    changes = ([], []) if before is None or after is None else (before & ~after, after & ~before)
    lost, gained = ([_words(first, second, i) for i in _places(mask)] for mask in changes)
    return Comparison(
        benchmark=first.benchmark,
        language=first.language,
        differences=paired_differences(first.outcome, second.outcome),
        pictures=pictures,
        lost=lost,
        gained=gained,
    )


def _right(result: BenchmarkResult) -> Tensor | None:
    """(N,) or, of retrieval, (M,): the answer to each picture or text is right."""
    if isinstance(result.outcome, ZeroShotOutcome):
        return result.outcome.ranks == 0
    return result.outcome.text_ranks == 0 if isinstance(result.outcome, RetrievalOutcome) else None


def _right_pictures(result: BenchmarkResult) -> Tensor:
    assert isinstance(result.outcome, ZeroShotOutcome | RetrievalOutcome)
    return (result.outcome.ranks if isinstance(result.outcome, ZeroShotOutcome) else result.outcome.image_ranks) == 0


def _places(mask: Tensor | list[Any]) -> list[int]:
    return torch.as_tensor(mask).nonzero().flatten().tolist()


def _words(first: BenchmarkResult, second: BenchmarkResult, place: int) -> str:
    """What happened to a sample, in one line."""
    one, other = first.outcome, second.outcome
    if isinstance(one, ZeroShotOutcome) and isinstance(other, ZeroShotOutcome):
        names = [first.texts[int(outcome.predictions[place])] for outcome in (one, other)]
        return f"{first.pictures[place]}: {first.texts[int(one.labels[place])]}, taken for {names[0]}, now {names[1]}"
    assert isinstance(one, RetrievalOutcome)
    assert isinstance(other, RetrievalOutcome)
    picture = first.pictures[int(one.text_to_image[place])]
    ranks = [int(outcome.text_ranks[place]) + 1 for outcome in (one, other)]
    return f"{picture}: {first.texts[place]}: rank {ranks[0]}, now {ranks[1]}"


def print_comparison(console: Console, comparison: Comparison, *, samples: int) -> None:
    """A table of scores, differences and their p, McNemar's test, and up to ``samples`` changed ones of each kind."""
    console.print(_table(comparison))
    for line in _lines(comparison, samples):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    """The scores of both models in percent, their difference with its 95 % interval, and p."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{comparison.benchmark}/{comparison.language}", title_justify="left")
    table.add_column("metric")
    for column in ("first", "second", "difference", "95 %", "p"):
        table.add_column(column, justify="right")
    for name, change in comparison.differences.items():
        low, high = (f"{100 * edge:+.1f}" for edge in (change.low, change.high))
        table.add_row(
            name,
            *(f"{100 * score:.1f}" for score in (change.first, change.second)),
            f"{100 * (change.second - change.first):+.1f}",
            f"{low} to {high}",
            f"{change.p_value:.3f}",
            style="bold" if change.p_value < 0.05 else "",
        )
    return table


def _lines(comparison: Comparison, samples: int) -> list[str]:
    lines = []
    if test := comparison.pictures:
        lines.append(
            f"pictures that only the first gets right: {test.lost}, only the second: {test.gained} "
            f"(McNemar, exact: p = {test.p_value:.3g})"
        )
    for what, changed in (("lost", comparison.lost), ("gained", comparison.gained)):
        lines += [f"  {what} {line}" for line in changed[:samples]]
        if len(changed) > samples:
            lines.append(f"  {what}: {len(changed) - samples} more")
    return lines

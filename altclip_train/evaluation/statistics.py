"""How sure a score is, and whether two models differ: bootstrap over pictures, and McNemar's test.

A benchmark is a draw of pictures; its candidates are part of the task and stay as they are. Texts of one picture are
not independent of each other, so what is drawn again is a picture with all its texts, in both directions of retrieval:
an interval over single texts would be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
MAX_WEIGHTS = 2**19  # of resamples, at a time: 4 MB
Intervals = dict[str, tuple[float, float]]


class Outcome(Protocol):
    """What a model did with each of the N pictures of a benchmark."""

    def rows(self) -> Tensor:
        """(N, K): all that the scores need of each picture. Equal rows are exchangeable."""
        ...

    def scores(self, rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Each score (...), when row g of (G, K) counts ``weights[..., g]`` times."""
        ...


class Difference(NamedTuple):
    """Of one score between two models on the same pictures; ``p_value`` is two-sided."""

    first: float
    second: float
    low: float
    high: float
    p_value: float


class McNemar(NamedTuple):
    """Pictures or texts that only one of two models gets right, and how likely so uneven a split is by chance."""

    lost: int  # right for the first model alone
    gained: int  # right for the second model alone
    p_value: float


def scores_and_intervals(outcome: Outcome, *, seed: int = 0) -> tuple[dict[str, float], Intervals]:
    """Every score, and the interval that holds ``LEVEL`` of its resampled values (percentile bootstrap).

    A score of 0 or 1 gets an interval without width: resampling cannot know what it never saw.
    """
    rows, counts = torch.unique(outcome.rows(), dim=0, return_counts=True)
    scores = {name: value.item() for name, value in outcome.scores(rows, counts.double()).items()}
    resampled = [outcome.scores(rows, weights) for weights in _resampled(counts, seed)]
    return scores, {name: _interval(torch.cat([part[name] for part in resampled])) for name in scores}


def paired_differences(first: Outcome, second: Outcome, *, seed: int = 0) -> dict[str, Difference]:
    """Second minus first, with both models scored on the same resampled pictures (paired bootstrap).

    ``p_value`` is twice the share of resamples on the far side of zero, at least 2 / (resamples + 1).
    """
    width = first.rows().shape[1]
    rows, counts = torch.unique(torch.cat([first.rows(), second.rows()], dim=1), dim=0, return_counts=True)

    def scored(weights: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return first.scores(rows[:, :width], weights), second.scores(rows[:, width:], weights)

    before, after = scored(counts.double())
    resampled = [scored(weights) for weights in _resampled(counts, seed)]
    differences = {}
    for name in before:
        changes = torch.cat([second_part[name] - first_part[name] for first_part, second_part in resampled])
        low, high = _interval(changes)
        far = min(int((changes <= 0).sum()), int((changes >= 0).sum()))
        p_value = min(1.0, 2 * (far + 1) / (RESAMPLES + 1))
        differences[name] = Difference(before[name].item(), after[name].item(), low, high, p_value)
    return differences


def mcnemar(first_right: Tensor, second_right: Tensor) -> McNemar:
    """Exact test on paired answers (N,) bool, which must be independent of each other: pictures, not captions.

    Reference: McNemar (1947), Psychometrika 12; the sign test on what only one model gets right.
    """
    lost = int((first_right & ~second_right).sum())
    gained = int((second_right & ~first_right).sum())
    return McNemar(lost, gained, _sign_test(lost, gained))


def _sign_test(one: int, other: int) -> float:
    """Two-sided: twice the probability of at most the smaller number among one + other fair coins."""
    total = one + other
    k = torch.arange(min(one, other) + 1, dtype=torch.float64)
    full = torch.tensor(total + 1.0, dtype=torch.float64)
    logs = torch.lgamma(full) - torch.lgamma(k + 1) - torch.lgamma(full - k) - total * math.log(2)
    return min(1.0, 2 * logs.exp().sum().item())


def _resampled(counts: Tensor, seed: int) -> Iterator[Tensor]:
    """Blocks (resamples, G): how often each row occurs among as many pictures drawn with replacement.

    Drawing pictures and counting rows is drawing the counts: a multinomial, however many pictures there are.
    """
    generator = np.random.default_rng(seed)
    shares = counts.double().numpy() / int(counts.sum())
    block = max(1, MAX_WEIGHTS // len(counts))
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        yield torch.from_numpy(generator.multinomial(int(counts.sum()), shares, size=size)).double()


def _interval(values: Tensor) -> tuple[float, float]:
    edges = values.new_tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low, high = torch.quantile(values, edges).tolist()
    return low, high


def half_widths(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Half of each interval's width: what stands after the ±."""
    return {name: (high - low) / 2 for name, (low, high) in intervals.items()}

"""The order of samples: a pure function of seed, sample counts and weights.

The order is one endless stream of positions. Sources are interleaved by weight without replacement, each
with its own epochs; in each of its epochs a source gives every sample once. Inside a source, blocks of
neighbouring samples are shuffled and samples are permuted within windows of blocks, so that reading stays
local. Nothing here knows of ranks, loader processes or batches, so they cannot change the order.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One visit of one sample: its source, its index in the source, and which epoch of the source it is."""

    source: int
    index: int
    source_epoch: int


class Plan:
    """``plan[position]`` is the sample at any position >= 0 of the stream; seeking costs no scan.

    After n positions a source of share w has given n * w samples, to within ceil(log2(number of sources)).

    Args:
        shard_counts: samples of each shard of each source.
        weights: each source's share of the stream, in any unit.
        block_size: neighbouring samples of a shard that are shuffled together.
        window_blocks: shuffled blocks among which samples are permuted.
    """

    def __init__(
        self,
        *,
        shard_counts: Sequence[Sequence[int]],
        weights: Sequence[float],
        seed: int,
        block_size: int = 256,
        window_blocks: int = 16,
    ) -> None:
        if not shard_counts or len(shard_counts) != len(weights):
            raise ValueError(f"got {len(shard_counts)} sources and {len(weights)} weights: need one weight per source")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights {list(weights)}: each must be a finite number above 0")
        if min(block_size, window_blocks) < 1:
            raise ValueError(f"block_size={block_size}, window_blocks={window_blocks}: both must be at least 1")
        for number, counts in enumerate(shard_counts):
            if sum(counts) == 0:
                raise ValueError(f"source {number} has no samples in its {len(counts)} shards")
        seed = operator.index(seed)
        self.epoch_samples = sum(map(sum, shard_counts))
        self.fingerprint = hashlib.sha256(
            json.dumps([PLAN_FORMAT, seed, shard_counts, list(weights), block_size, window_blocks]).encode()
        ).hexdigest()
        self._sources = [
            _SourceOrder(counts, key=(seed, number), block_size=block_size, window_blocks=window_blocks)
            for number, counts in enumerate(shard_counts)
        ]
        self._interleave = _interleave(_as_integers(weights))

    def __getitem__(self, position: int) -> SampleRef:
        position = operator.index(position)
        if position < 0:
            raise IndexError(f"position {position}: the stream begins at 0")
        source, place = self._locate(position)
        order = self._sources[source]
        source_epoch, index = divmod(place, order.count)
        return SampleRef(source, order.index(source_epoch, index), source_epoch)

    def _locate(self, position: int) -> tuple[int, int]:
        """The source of a position and how many samples that source has given before it."""
        node = self._interleave
        while isinstance(node, _Split):
            left = position * node.left_weight // node.weight
            if (position + 1) * node.left_weight // node.weight > left:
                position, node = left, node.left
            else:
                position, node = position - left, node.right
        return node, position


class _Split(NamedTuple):
    """Of the first n positions, floor(n * left_weight / weight) go left and the others right."""

    left_weight: int
    weight: int
    left: _Split | int
    right: _Split | int


def _as_integers(weights: Sequence[float]) -> list[int]:
    """Integers in the proportion of the decimal numbers as written, so that shares are exact."""
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * denominator) for fraction in fractions]
    return [integer // math.gcd(*integers) for integer in integers]


def _interleave(weights: Sequence[int], first: int = 0) -> _Split | int:
    if len(weights) == 1:
        return first
    half = len(weights) // 2
    left, right = weights[:half], weights[half:]
    return _Split(sum(left), sum(weights), _interleave(left, first), _interleave(right, first + half))


class _SourceOrder:
    """The order of one source's samples in each of its epochs."""

    def __init__(self, counts: Sequence[int], *, key: tuple[int, int], block_size: int, window_blocks: int) -> None:
        shards = list(pairwise(accumulate(counts, initial=0)))
        self.count = shards[-1][1]
        # Blocks tile the samples of the source; none reaches over the end of its shard.
        self._starts = np.concatenate([np.arange(start, end, block_size) for start, end in shards])
        self._lengths = np.diff(self._starts, append=self.count)
        self._key = key
        self._window_blocks = window_blocks
        self._epochs: OrderedDict[int, tuple[np.ndarray, list[int]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], list[int]] = OrderedDict()

    def index(self, epoch: int, place: int) -> int:
        """The sample at ``place`` (0 <= place < count) of ``epoch``."""
        window_starts = self._blocks(epoch)[1]
        window = bisect_right(window_starts, place) - 1
        return self._window(epoch, window)[place - window_starts[window]]

    def _blocks(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Shuffled blocks of an epoch, and the place where each window of them starts."""
        if epoch not in self._epochs:
            blocks = permutation(len(self._starts), "blocks", *self._key, epoch)
            places = np.cumsum(self._lengths[blocks]) - self._lengths[blocks]
            self._epochs[epoch] = (blocks, places[:: self._window_blocks].tolist())
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> list[int]:
        """Samples of a window in their order."""
        if (epoch, window) not in self._windows:
            first = window * self._window_blocks
            blocks = self._blocks(epoch)[0][first : first + self._window_blocks]
            spans = zip(self._starts[blocks], self._lengths[blocks], strict=True)
            samples = np.concatenate([np.arange(start, start + length) for start, length in spans])
            order = permutation(len(samples), "window", *self._key, epoch, window)
            self._windows[epoch, window] = samples[order].tolist()
            while len(self._windows) > 4:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]


def stable_hash(*key: int | str) -> int:
    """128 bits that depend on ``key`` alone: equal in every process, machine and version."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")


def permutation(size: int, *key: int | str) -> np.ndarray:
    """A permutation of ``size`` items given by ``key``, (size,) int64.

    It sorts raw bits, because NumPy keeps those the same between versions but not ``Generator.permutation``.
    """
    return np.argsort(np.random.PCG64(stable_hash(*key)).random_raw(size), kind="stable")

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
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

PLAN_FORMAT = 1


class SampleRef(NamedTuple):
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
    """The order of one source's samples in each of its epochs.

    Blocks tile the samples of the source; none reaches over the end of its shard. What is kept is small: where
    shards end, and of each epoch in use the shuffled numbers of its blocks.
    """

    def __init__(self, counts: Sequence[int], *, key: tuple[int, int], block_size: int, window_blocks: int) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)  # (shards,)
        self._first_samples = np.cumsum(self._counts) - self._counts
        self._block_ends = np.cumsum(-(-self._counts // block_size))
        self.count = int(self._counts.sum())
        self._key = key
        self._block_size, self._window_blocks = block_size, window_blocks
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
            blocks = permutation(int(self._block_ends[-1]), "blocks", *self._key, epoch).astype(np.int32)
            lengths = self._block_lengths()[blocks]
            windows = np.add.reduceat(lengths, np.arange(0, len(blocks), self._window_blocks), dtype=np.int64)
            self._epochs[epoch] = (blocks, (np.cumsum(windows) - windows).tolist())
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _block_lengths(self) -> np.ndarray:
        """Samples of every block: all full but the last of each shard."""
        lengths = np.full(self._block_ends[-1], self._block_size, dtype=np.int32)
        filled = self._counts > 0
        lengths[self._block_ends[filled] - 1] = (self._counts[filled] - 1) % self._block_size + 1
        return lengths

    def _window(self, epoch: int, window: int) -> list[int]:
        """Samples of a window in their order."""
        if (epoch, window) not in self._windows:
            first = window * self._window_blocks
            blocks = self._blocks(epoch)[0][first : first + self._window_blocks]
            samples = np.concatenate([np.arange(*self._span(block)) for block in blocks.tolist()])
            order = permutation(len(samples), "window", *self._key, epoch, window)
            self._windows[epoch, window] = samples[order].tolist()
            while len(self._windows) > 4:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]

    def _span(self, block: int) -> tuple[int, int]:
        """First sample of a block, and the one after its last."""
        shard = int(np.searchsorted(self._block_ends, block, side="right"))
        first, count = int(self._first_samples[shard]), int(self._counts[shard])
        before = int(self._block_ends[shard - 1]) if shard else 0
        start = first + (block - before) * self._block_size
        return start, min(start + self._block_size, first + count)

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes find the epoch's order for themselves: sending it costs more."""
        return {**self.__dict__, "_epochs": OrderedDict(), "_windows": OrderedDict()}


def stable_hash(*key: int | str) -> int:
    """128 bits that depend on ``key`` alone: equal in every process, machine and version."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")


def permutation(size: int, *key: int | str) -> np.ndarray:
    """A permutation of ``size`` items given by ``key``, (size,) int64.

    It sorts raw bits, because NumPy keeps those the same between versions but not ``Generator.permutation``.
    """
    return _stable_order(np.random.PCG64(stable_hash(*key)).random_raw(size))


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """``np.argsort(keys, kind="stable")`` of random uint64, (N,), four times as fast.

    Plain sorting is quicker than sorting indices, so each index is put in the lowest bits of its key. The second
    sort looks at whole keys again; it finds them nearly in order.
    """
    mask = np.uint64((1 << max(1, (len(keys) - 1).bit_length())) - 1)
    packed = keys & ~mask
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    packed &= mask
    order = packed.astype(np.int64)
    del packed  # 32 MB for a source of 10^9 samples, as every array here
    keys = keys[order]
    return order[np.argsort(keys, kind="stable")]

"""Shape legend and the batches that loaders hand to the stages.

Every shape in a comment or docstring of this package uses these letters:

    B  texts or pairs in this process     G  pairs in the global batch (all ranks)
    T  real tokens of a packed batch      L  tokens of one (padded) text
    W  width of a tower                   D  width of the joint image-text space
    H  attention heads                    P  image patches plus the class token
    C  classes                            K  rank cut-off of a top-k metric
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PackedTokens(NamedTuple):
    """Token ids of B texts laid end to end, without any padding.

    Text ``i`` is ``input_ids[cumulative_lengths[i]:cumulative_lengths[i + 1]]``.
    """

    input_ids: Tensor  # (T,) int64
    cumulative_lengths: Tensor  # (B + 1,) int32, starts with 0, ends with T
    max_length: int  # longest text of the batch, in tokens

    @classmethod
    def from_lists(cls, token_ids: Sequence[Sequence[int]]) -> PackedTokens:
        """Pack B lists of token ids. Raises ValueError when a text has no token."""
        lengths = np.fromiter(map(len, token_ids), np.int32, len(token_ids))
        return cls.from_flat(np.fromiter(chain.from_iterable(token_ids), np.int64, lengths.sum()), lengths)

    @classmethod
    def from_flat(cls, token_ids: np.ndarray, lengths: np.ndarray) -> PackedTokens:
        """Pack (T,) int64 ids, which the result shares, of texts with ``lengths``. Raises as ``from_lists`` does."""
        if lengths.min(initial=1) < 1 or not len(lengths):
            raise ValueError(f"cannot pack texts of {lengths.tolist()} tokens: every text needs at least one token")
        cumulative = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=cumulative[1:])
        return cls(torch.from_numpy(token_ids), torch.from_numpy(cumulative), int(lengths.max()))

    @property
    def lengths(self) -> Tensor:
        """Tokens per text, (B,) int32."""
        return self.cumulative_lengths.diff()


class SkippedSample(NamedTuple):
    """A sample that could not be used, so that another one stands in its place."""

    reason: str  # short code, such as image_damaged
    shard: str
    key: str
    detail: str  # for a person


class CachedVectors(NamedTuple):
    """A frozen tower's vectors that a cache holds for some of B entries; the batch has inputs of the others alone."""

    vectors: Tensor | None  # (N, W) float16 or float32; None: not one
    places: Tensor  # (N,) int64, their entries
    missing: Tensor  # (B - N,) int64, the entries whose inputs the batch has, in the same order
    rows: list[tuple[int, int]]  # B - N: shard and row that the cache has for each missing one; row -1: none


class TextPairBatch(NamedTuple):
    """Stage one: B entries of parallel text; each gives two student texts and one teacher text."""

    student: PackedTokens  # 2B texts: B in a drawn non-English language, then the same B in English
    teacher: PackedTokens | None  # B English texts in the CLIP teacher's tokens, without the cached ones; None: no text
    languages: list[str]  # B drawn languages
    keys: list[str]  # B sample keys
    skipped: Sequence[SkippedSample] = ()  # at most B, replaced by samples above
    cached: CachedVectors | None = None  # the teacher's vectors; None: there is no cache


class ImageTextBatch(NamedTuple):
    """Stage two: B image-text pairs."""

    # Of the pictures that are not cached; None: of none. Loaders give (B, R, R, 3) uint8, a quarter of the bytes;
    # the datamodule makes (B, 3, R, R) float32, normalised, of them on the device that trains.
    pixel_values: Tensor | None
    text: PackedTokens  # B texts
    caption_ids: Tensor  # (B,) int64, hash of each caption: equal captions have equal ids
    languages: list[str]  # B languages of the captions
    keys: list[str]  # B sample keys
    skipped: Sequence[SkippedSample] = ()  # at most B, replaced by samples above
    cached: CachedVectors | None = None  # projected image features, not normalised; None: there is no cache

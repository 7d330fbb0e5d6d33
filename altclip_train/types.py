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
from typing import NamedTuple

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
        lengths = [len(ids) for ids in token_ids]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"cannot pack texts of {lengths} tokens: every text needs at least one token")
        cumulative = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        cumulative[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        flat = torch.tensor([token for ids in token_ids for token in ids], dtype=torch.int64)  # (T,)
        return cls(flat, cumulative, max(lengths))

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


class TextPairBatch(NamedTuple):
    """Stage one: B entries of parallel text; each gives two student texts and one teacher text."""

    student: PackedTokens  # 2B texts: B in a drawn non-English language, then the same B in English
    teacher: PackedTokens  # B English texts in the CLIP teacher's tokens
    languages: list[str]  # B drawn languages
    keys: list[str]  # B sample keys
    skipped: Sequence[SkippedSample] = ()  # at most B, replaced by samples above


class ImageTextBatch(NamedTuple):
    """Stage two: B image-text pairs."""

    pixel_values: Tensor  # (B, 3, R, R) float32, normalised
    text: PackedTokens  # B texts
    caption_ids: Tensor  # (B,) int64, hash of each caption: equal captions have equal ids
    languages: list[str]  # B languages of the captions
    keys: list[str]  # B sample keys
    skipped: Sequence[SkippedSample] = ()  # at most B, replaced by samples above

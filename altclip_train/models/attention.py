"""Exact softmax attention inside each text of a batch, in two layouts.

Packed (training and features): the tokens of all texts laid end to end, `(T, W)`, without padding. Texts are sorted
by length and each group of equal length is one dense batch (CPU, float32), or the variable-length kernel takes the
cumulative lengths (CUDA in half precision).
Padded (the documented interface): `(B, L, W)` with a mask, every position computed, weights on request. Nothing in
it looks at values, so that it can be exported as one graph.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.types import PackedTokens

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None
if varlen_attn is not None and "window_size" not in inspect.signature(varlen_attn).parameters:
    varlen_attn = None  # its first form cannot mask causally by a window

# On a CPU, fused attention loses to three plain kernels for short sequences: in bfloat16 several times over.
SHORT = 64


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Where each text of a batch lies, worked out once and used by every layer."""

    starts: Tensor  # (B,) int64, row of the first token of each text
    lengths: Tensor  # (B,) int64
    max_length: int
    causal: bool
    groups: tuple[tuple[int, int], ...] | None  # (texts, length) of consecutive equal texts; None: variable-length
    text: Tensor  # (T,) int64, the text that each token belongs to
    position: Tensor  # (T,) int64, place of each token in its text, from 0
    order: Tensor | None = None  # (B,) int64, caller's number of each text; None: unchanged

    @classmethod
    def of(cls, tokens: PackedTokens, *, causal: bool, variable_length: bool) -> tuple[PackedLayout, Tensor]:
        """Layout of a packed batch, and its token ids (T,) in the order of that layout."""
        device = tokens.input_ids.device
        lengths = tokens.lengths.long()  # (B,)
        begins = tokens.cumulative_lengths[:-1].long()  # (B,)
        order, groups = None, None
        if not variable_length:
            lengths, order = lengths.sort(stable=True)
            begins = begins[order]
            sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
            groups = tuple(zip(counts.tolist(), sizes.tolist(), strict=True))
        starts = lengths.cumsum(0) - lengths
        total = tokens.input_ids.shape[0]
        text = torch.arange(lengths.shape[0], device=device).repeat_interleave(lengths, output_size=total)  # (T,)
        position = torch.arange(total, device=device) - starts[text]  # (T,)
        input_ids = tokens.input_ids if order is None else tokens.input_ids[begins[text] + position]
        layout = cls(
            starts=starts,
            lengths=lengths,
            max_length=tokens.max_length,
            causal=causal,
            groups=groups,
            text=text,
            position=position,
            order=order,
        )
        return layout, input_ids

    @classmethod
    def dense(cls, batch: int, length: int, device: torch.device) -> PackedLayout:
        """Layout of `batch` sequences of one `length`: the patches of pictures."""
        starts = torch.arange(0, batch * length, length, device=device)
        return cls(
            starts=starts,
            lengths=torch.full_like(starts, length),
            max_length=length,
            causal=False,
            groups=((batch, length),),
            text=torch.arange(batch, device=device).repeat_interleave(length),
            position=torch.arange(length, device=device).repeat(batch),
        )

    def restore(self, pooled: Tensor) -> Tensor:
        """One row per text, (B, W), from the order of this layout back to the caller's."""
        return pooled if self.order is None else pooled[self.order.argsort()]


@dataclass(frozen=True, kw_only=True)
class PaddedLayout:
    """What the tokens of a padded batch may see, and where attention weights are kept when they are asked for."""

    mask: Tensor | None  # (B, 1, 1 or L, L) bool, False where a query may not look; None: it may look everywhere
    causal: bool = False  # only without a mask, which otherwise says it
    weights: list[Tensor] | None = None  # each block appends its (B, H, L, L); None: not asked for

    @classmethod
    def of(
        cls, attention_mask: Tensor | None, x: Tensor, *, causal: bool = False, weights: bool = False
    ) -> PaddedLayout:
        """Layout of states x (B, L, W). Raises ValueError unless the mask is (B, L)."""
        recorded: list[Tensor] | None = [] if weights else None
        if attention_mask is None:
            return cls(mask=None, causal=causal, weights=recorded)
        if attention_mask.shape != x.shape[:2]:
            found, expected = tuple(attention_mask.shape), tuple(x.shape[:2])
            raise ValueError(f"attention_mask is {found}, expected {expected}: one number for each token")
        mask = attention_mask.bool()[:, None, None]  # (B, 1, 1, L)
        if causal:
            mask = mask & mask.new_ones(x.shape[1], x.shape[1]).tril()  # (B, 1, L, L)
        return cls(mask=mask, weights=recorded)

    @property
    def attentions(self) -> tuple[Tensor, ...] | None:
        """Weights of every block, (B, H, L, L) each."""
        return None if self.weights is None else tuple(self.weights)


def use_variable_length(weight: Tensor, *, dropout: float) -> bool:
    """Whether the variable-length kernel can run: CUDA, half precision or autocast, no dropout."""
    if varlen_attn is None or weight.device.type != "cuda" or dropout > 0:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
    return dtype in (torch.float16, torch.bfloat16)


@torch.compiler.disable()  # its groups differ from batch to batch: a graph for each would never end
def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, dropout: float) -> Tensor:
    """Softmax attention inside each text: (T, H, W/H) each -> (T, W).

    A query of shape (B, H, W/H) is one query per text that sees the whole text: -> (B, W).
    """
    single = query.shape[0] == layout.starts.shape[0]
    if layout.groups is None:
        return _variable_length_attention(query, key, value, layout, single=single)
    heads, width = query.shape[1:]
    query_sizes = [count * (1 if single else length) for count, length in layout.groups]
    sizes = [count * length for count, length in layout.groups]
    parts = zip(layout.groups, query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True)
    outputs = []
    for (count, _), *states in parts:
        q, k, v = (part.view(count, -1, heads, width).transpose(1, 2) for part in states)  # (n, H, L, W/H)
        attended = dense_attention(q, k, v, causal=layout.causal and not single, dropout=dropout)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads * width))  # (n * L, W)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def padded_attention(query: Tensor, key: Tensor, value: Tensor, layout: PaddedLayout, *, dropout: float) -> Tensor:
    """Softmax attention over what the mask allows: (B, L, H, W/H) each -> (B, L, W)."""
    q, k, v = (states.transpose(1, 2) for states in (query, key, value))  # (B, H, L, W/H)
    attended = dense_attention(
        q, k, v, mask=layout.mask, causal=layout.causal, dropout=dropout, recorded=layout.weights
    )
    return attended.transpose(1, 2).flatten(2)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    dropout: float,
    mask: Tensor | None = None,
    recorded: list[Tensor] | None = None,
) -> Tensor:
    """Softmax attention of n sequences of one length: (n, H, L, W/H) each -> (n, H, L, W/H).

    Either `causal` or a bool `mask`, not both. The weights (n, H, L, L) are appended to `recorded` if it is given.
    """
    length = key.shape[2]
    fused = query.device.type != "cpu" or query.dtype != torch.bfloat16 or length > SHORT
    if fused and recorded is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    scores = (query * query.shape[3] ** -0.5) @ key.mT  # (n, H, L, L)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if mask is not None:  # filled, not added to: a sum could overflow in half precision
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(scores.dtype, torch.float32)  # at least
    weights = F.dropout(scores.softmax(-1, dtype=wide).to(value.dtype), dropout, training=dropout > 0)
    if recorded is not None:
        recorded.append(weights)
    return weights @ value


def _variable_length_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, single: bool
) -> Tensor:
    """`packed_attention` by the CUDA kernel that takes cumulative lengths."""
    assert varlen_attn is not None
    key_ends = F.pad(layout.lengths.cumsum(0), (1, 0)).int()  # (B + 1,)
    query_ends = torch.arange(len(key_ends), dtype=torch.int32, device=key_ends.device) if single else key_ends
    attended = varlen_attn(
        query,
        key,
        value,
        query_ends,
        key_ends,
        1 if single else layout.max_length,
        layout.max_length,
        window_size=(-1, 0) if layout.causal and not single else (-1, -1),
    )
    assert isinstance(attended, Tensor)
    return attended.flatten(1)

"""Exact softmax attention inside each text of a batch, in two layouts.

Packed (training and features): the tokens of all texts laid end to end, `(T, W)`, without padding. What happens to
them depends on the device:
- "groups": texts are sorted by length, and each group of equal length is one dense batch (CPU);
- "variable_length": a kernel of our own takes the places where texts end (CUDA without dropout of attention);
- "padded": queries, keys and values alone are padded, because a GPU would idle in a kernel for each length (CUDA else).
Padded (the documented interface): `(B, L, W)` with a mask, every position computed, weights on request. Nothing in
it looks at values, so that it can be exported as one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.types import PackedTokens

Form = Literal["groups", "variable_length", "padded"]

# On a CPU, fused attention loses to three plain kernels for short sequences: in bfloat16 several times over.
SHORT = 64


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """Where each text of a batch lies, worked out once and used by every layer."""

    starts: Tensor  # (B,) int64, row of the first token of each text
    lengths: Tensor  # (B,) int64
    max_length: int
    causal: bool
    form: Form
    text: Tensor  # (T,) int64, the text that each token belongs to
    position: Tensor  # (T,) int64, place of each token in its text, from 0
    groups: tuple[tuple[int, int], ...] | None = None  # form "groups": (texts, length) of consecutive equal texts
    ends: Tensor | None = None  # form "variable_length": (B + 1,) int32, rows where texts end, from 0
    padded: PaddedLayout | None = None  # form "padded": what padded queries may see
    order: Tensor | None = None  # (B,) int64, caller's number of each text; None: unchanged

    @classmethod
    def of(cls, tokens: PackedTokens, *, causal: bool, form: Form) -> tuple[PackedLayout, Tensor]:
        """Layout of a packed batch, and its token ids (T,) in the order of that layout."""
        device = tokens.input_ids.device
        lengths = tokens.lengths.long()  # (B,)
        begins = tokens.cumulative_lengths[:-1].long()  # (B,)
        order, groups, padded = None, None, None
        if form == "groups":
            lengths, order = lengths.sort(stable=True)
            begins = begins[order]
            sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
            groups = tuple(zip(counts.tolist(), sizes.tolist(), strict=True))
        starts = lengths.cumsum(0) - lengths
        total = tokens.input_ids.shape[0]
        text = torch.arange(lengths.shape[0], device=device).repeat_interleave(lengths, output_size=total)  # (T,)
        position = torch.arange(total, device=device) - starts[text]  # (T,)
        input_ids = tokens.input_ids if order is None else tokens.input_ids[begins[text] + position]
        if form == "padded":
            mask = torch.arange(tokens.max_length, device=device) < lengths[:, None]  # (B, L)
            padded = PaddedLayout.of(mask, mask, causal=causal)
        layout = cls(
            starts=starts,
            lengths=lengths,
            max_length=tokens.max_length,
            causal=causal,
            form=form,
            text=text,
            position=position,
            groups=groups,
            ends=tokens.cumulative_lengths.int() if form == "variable_length" else None,
            padded=padded,
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
            form="groups",
            groups=((batch, length),),
            text=torch.arange(batch, device=device).repeat_interleave(length),
            position=torch.arange(length, device=device).repeat(batch),
        )

    def is_single(self, query: Tensor) -> bool:
        """Whether there is one query for each text, and not for each token."""
        return query.shape[0] == self.starts.shape[0]

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


def attention_form(weight: Tensor, *, dropout: float) -> Form:
    """The fastest exact form for a tower with this weight, in the precision that is on."""
    if weight.device.type != "cuda":
        return "groups"
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
    fits = dtype in (torch.float16, torch.bfloat16, torch.float32) and dropout == 0
    return "variable_length" if fits and find_spec("triton") else "padded"


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


@torch.compiler.disable()  # the groups differ from batch to batch: a graph for each would never end
def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, dropout: float) -> Tensor:
    """A dense batch for each length."""
    assert layout.groups is not None
    groups, single = layout.groups, layout.is_single(query)
    heads, width = query.shape[1:]
    query_sizes = [count * (1 if single else length) for count, length in groups]
    sizes = [count * length for count, length in groups]
    parts = zip(groups, query.split(query_sizes), key.split(sizes), value.split(sizes), strict=True)
    outputs = []
    for (count, _), *states in parts:
        q, k, v = (part.view(count, -1, heads, width).transpose(1, 2) for part in states)  # (n, H, L, W/H)
        attended = dense_attention(q, k, v, causal=layout.causal and not single, dropout=dropout)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads * width))  # (n * L, W)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attention_through_padding(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, dropout: float
) -> Tensor:
    """What goes in is padded, and what comes out packed."""
    assert layout.padded is not None
    single = layout.is_single(query)
    texts, length = layout.starts.shape[0], layout.max_length
    row = layout.text * length + layout.position  # (T,), of each token among those of all texts padded

    def pad(states: Tensor) -> Tensor:  # (T, H, W/H) -> (B, L, H, W/H)
        return states.new_zeros(texts * length, *states.shape[1:]).index_copy(0, row, states).unflatten(0, (texts, -1))

    queries = query[:, None] if single else pad(query)
    attended = padded_attention(queries, pad(key), pad(value), layout.padded, dropout=dropout)  # (B, 1 or L, W)
    return attended[:, 0] if single else attended.flatten(0, 1).index_select(0, row)


@torch.compiler.disable()  # it is compiled already
def _variable_length_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, dropout: float
) -> Tensor:
    """The CUDA kernel that takes the places where texts end."""
    from altclip_train.models.short_attention import short_attention  # Triton comes with CUDA builds of torch alone

    assert layout.ends is not None
    assert dropout == 0
    ends, longest, causal = layout.ends, layout.max_length, layout.causal
    if layout.is_single(query):
        ends, longest, causal = torch.arange(len(ends), dtype=torch.int32, device=query.device), 1, False
    return short_attention(
        query, key, value, ends=(ends, layout.ends), longest=(longest, layout.max_length), causal=causal
    ).flatten(1)


# Softmax attention inside each text, by the form of the layout: query, key and value (T, H, W/H) each -> (T, W).
# A query of shape (B, H, W/H) is one query per text that sees the whole text: -> (B, W).
PACKED_ATTENTION: Mapping[Form, Callable[..., Tensor]] = {
    "groups": _grouped_attention,
    "variable_length": _variable_length_attention,
    "padded": _attention_through_padding,
}

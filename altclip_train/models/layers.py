"""Attention over packed texts, the MLP, and the two kinds of transformer block.

Texts are never padded: norms and linear layers work on `(T, W)`, the tokens of all texts laid end to end.
Attention is the one layer that must know where a text ends. It has two exact forms: texts are sorted by
length and each group of equal length is one dense batch (CPU, float32), or the variable-length kernel takes
the cumulative lengths (CUDA in half precision).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altclip_train.types import PackedTokens

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None
if varlen_attn is not None and "window_size" not in inspect.signature(varlen_attn).parameters:
    varlen_attn = None  # its first form cannot mask causally by a window


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), through silu because that is one fused kernel each way."""
    return F.silu(1.702 * x) / 1.702


# On a CPU, fused attention loses to three plain kernels for short sequences: in bfloat16 several times over.
SHORT = 64

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


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


def use_variable_length(weight: Tensor, *, dropout: float) -> bool:
    """Whether the variable-length kernel can run: CUDA, half precision or autocast, no dropout."""
    if varlen_attn is None or weight.device.type != "cuda" or dropout > 0:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
    return dtype in (torch.float16, torch.bfloat16)


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


def dense_attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, dropout: float) -> Tensor:
    """Softmax attention of n sequences of one length: (n, H, L, W/H) each -> (n, H, L, W/H)."""
    length = key.shape[2]
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or length > SHORT:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    scores = (query * query.shape[3] ** -0.5) @ key.mT  # (n, H, L, L)
    if causal:
        later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    wide = torch.promote_types(scores.dtype, torch.float32)  # at least
    weights = F.dropout(scores.softmax(-1, dtype=wide).to(value.dtype), dropout, training=dropout > 0)
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


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: PackedLayout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W), or only the rows `rows`, one per text: -> (B, W)."""
        if rows is None or layout.causal:
            # A single query sees its whole text, so a causal tower asks for all and keeps its rows.
            attended = self._attend(self.qkv(x), layout)  # (T, W)
            return self.out(attended if rows is None else attended[rows])
        width = x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(x[rows], weight[:width], bias[:width])  # (B, W)
        key, value = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=1)  # (T, W) each
        return self.out(self._attend((query, key, value), layout))

    def _attend(self, states: Tensor | tuple[Tensor, Tensor, Tensor], layout: PackedLayout) -> Tensor:
        """Queries, keys and values, apart or as one (T, 3 W) tensor, -> (T, W) or (B, W)."""
        parts = states.chunk(3, dim=1) if isinstance(states, Tensor) else states
        query, key, value = (part.unflatten(1, (self.heads, -1)) for part in parts)  # (T, H, W/H)
        return packed_attention(query, key, value, layout, dropout=self.active_dropout)

    @property
    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, *, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACTIVATION_FUNCTIONS[activation]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(T, W) -> (T, W)."""
        return self.fc2(self.activation(self.fc1(x)))


class PreNormBlock(nn.Module):
    """CLIP's block: norm, attention, residual; norm, MLP, residual."""

    def __init__(self, *, width: int, heads: int, hidden: int, activation: str, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width=width, heads=heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width=width, hidden=hidden, activation=activation)

    def forward(self, x: Tensor, layout: PackedLayout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W), or only the rows `rows`, one per text: -> (B, W)."""
        residual = x if rows is None else x[rows]
        x = residual + self.attention(self.norm1(x), layout, rows)
        return x + self.mlp(self.norm2(x))

    @torch.no_grad()
    def reset_parameters(self, *, depth: int, factor: float) -> None:
        """CLIP's initialisation of one block of a tower with `depth` blocks."""
        width = self.norm1.weight.shape[0]
        residual_std = width**-0.5 * (2 * depth) ** -0.5 * factor
        for linear, std in (
            (self.attention.qkv, residual_std),
            (self.attention.out, width**-0.5 * factor),
            (self.mlp.fc1, (2 * width) ** -0.5 * factor),
            (self.mlp.fc2, residual_std),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)


class PostNormBlock(nn.Module):
    """RoBERTa's block: attention, residual, norm; MLP, residual, norm."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        eps: float,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(width=width, heads=heads, dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width=width, hidden=hidden, activation=activation)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: PackedLayout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W), or only the rows `rows`, one per text: -> (B, W)."""
        residual = x if rows is None else x[rows]
        x = self.norm1(residual + self.dropout(self.attention(x, layout, rows)))
        return self.norm2(x + self.dropout(self.mlp(x)))


def set_dropout(module: nn.Module, probability: float) -> None:
    """Give every dropout inside `module` this probability; its configuration stays as it was published."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        elif isinstance(part, Attention):
            part.dropout = probability

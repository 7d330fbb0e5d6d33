"""The two kinds of transformer block and their parts.

Every part takes states in either layout of attention.py: packed `(T, W)` or padded `(B, L, W)`. Norms and linear
layers do not see the difference; attention is the one layer that must know where a text ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altclip_train.models.attention import PACKED_ATTENTION, PackedLayout, PaddedLayout, padded_attention

Layout = PackedLayout | PaddedLayout


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), through silu because that is one fused kernel each way."""
    return F.silu(1.702 * x).div_(1.702)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class Linear(nn.Linear):
    """Its tower draws the initial values, once: those of torch would be thrown away."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Its tower draws the initial values, as those of `Linear`."""

    def reset_parameters(self) -> None:
        pass


class WordEmbedding(Embedding):
    """The largest table of a tower, one row for each token."""


class Conv2d(nn.Conv2d):
    """Its tower draws the initial values, as those of `Linear`."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W) or (B, L, W) -> (B, L, W); of packed texts also one row `rows` of each: -> (B, W)."""
        if rows is None or layout.causal:
            # A single query sees its whole text, so a causal tower asks for all and keeps its rows.
            attended = self._attend(self.qkv(x), layout)  # (T, W)
            return self.out(attended if rows is None else attended[rows])
        width = x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(x[rows], weight[:width], bias[:width])  # (B, W)
        key, value = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=1)  # (T, W) each
        return self.out(self._attend((query, key, value), layout))

    def _attend(self, states: Tensor | tuple[Tensor, Tensor, Tensor], layout: Layout) -> Tensor:
        """Queries, keys and values, apart or as one (..., 3 W) tensor, -> (..., W)."""
        parts = states.chunk(3, dim=-1) if isinstance(states, Tensor) else states
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)  # (..., H, W/H)
        if isinstance(layout, PaddedLayout):
            return padded_attention(query, key, value, layout, dropout=self.active_dropout)
        attend = PACKED_ATTENTION[layout.form]
        return attend(query, key, value, layout, dropout=self.active_dropout)

    @property
    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, *, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.activation = ACTIVATION_FUNCTIONS[activation]
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """What both kinds of block share: how `run_packed_blocks` calls them."""

    gradient_checkpointing = False


class PreNormBlock(Block):
    """CLIP's block: norm, attention, residual; norm, MLP, residual."""

    def __init__(self, *, width: int, heads: int, hidden: int, activation: str, eps: float, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width=width, heads=heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width=width, hidden=hidden, activation=activation)

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W) or (B, L, W) -> (B, L, W); of packed texts also one row `rows` of each: -> (B, W)."""
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


class PostNormBlock(Block):
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

    def forward(self, x: Tensor, layout: Layout, rows: Tensor | None = None) -> Tensor:
        """(T, W) -> (T, W) or (B, L, W) -> (B, L, W); of packed texts also one row `rows` of each: -> (B, W)."""
        residual = x if rows is None else x[rows]
        x = self.norm1(residual + self.dropout(self.attention(x, layout, rows)))
        return self.norm2(x + self.dropout(self.mlp(x)))


def run_packed_blocks(blocks: nn.ModuleList, x: Tensor, layout: PackedLayout, rows: Tensor) -> Tensor:
    """States of one row `rows` of each packed text after all blocks, (T, W) -> (B, W): the last computes no other."""
    asked = [*[None] * (len(blocks) - 1), rows]
    for block, its_rows in zip(blocks, asked, strict=True):
        assert isinstance(block, Block)
        if block.gradient_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, layout, its_rows, use_reentrant=False)
        else:
            x = block(x, layout, its_rows)
    return x


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, layout: PaddedLayout, *, keep_states: bool
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Padded states after all blocks, (B, L, W), and on request the tuple of those before, between and after them."""
    states = [x]
    for block in blocks:
        x = block(x, layout)
        if keep_states:
            states.append(x)
    return x, tuple(states) if keep_states else None


def check_indices(indices: Tensor, table: nn.Embedding, explanation: str) -> None:
    """Raise ValueError where the table has no row for an index; on a GPU that would end the process.

    It looks at values, so it is left out while a graph is captured.
    """
    if torch.compiler.is_compiling() or indices.is_meta or not indices.numel():
        return
    low, high = (int(value) for value in indices.aminmax())
    if low < 0 or high >= table.num_embeddings:
        raise ValueError(f"found {low if low < 0 else high}, {explanation}")


def compile_blocks(module: nn.Module, *, backend: Any = "inductor") -> None:
    """Compile every block inside `module`: for any number of tokens, and blocks of one shape once."""
    for part in module.modules():
        if isinstance(part, Block):
            part.compile(dynamic=True, backend=backend)


def set_gradient_checkpointing(module: nn.Module, enabled: bool) -> None:
    """Let every block inside `module` keep its input alone for backward, and compute the rest a second time."""
    for part in module.modules():
        if isinstance(part, Block):
            part.gradient_checkpointing = enabled


def set_dropout(module: nn.Module, probability: float) -> None:
    """Give every dropout inside `module` this probability; its configuration stays as it was published."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
        elif isinstance(part, Attention):
            part.dropout = probability

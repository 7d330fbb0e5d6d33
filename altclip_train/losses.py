"""The losses: distillation (stage one), and two exact global ones over image-text pairs (stage two).

All follow one rule over ranks: every rank returns the loss of the global batch, and its backward yields
world_size x d(global loss)/d(local tensor), so that the average over ranks which DDP and FSDP take is the
exact gradient. Ranks may hold unequal numbers of pairs; each pair weighs 1/G.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train import distributed

# Rows and columns of a tile of logits, and those up to which all logits are one tile, which is kept for backward. 2 MB
# stay in a CPU's cache between the passes over them; a GPU wants large matrix products, and holds three tiles of 64 MB.
CPU_TILE, CPU_ONLY_TILE = 768, 2048
GPU_TILE = GPU_ONLY_TILE = 4096


def distillation_loss(student: Tensor, target: Tensor, group: distributed.Group = None) -> Tensor:
    """Mean squared error between student and teacher vectors over the global batch. Both (N, W).

    Reference: AltCLIP (arXiv:2211.06679), teacher learning stage: MSE between the student's projected [CLS]
    and the teacher's end-of-text state, neither normalised.
    """
    if student.shape != target.shape:
        raise ValueError(f"student vectors {tuple(student.shape)} and targets {tuple(target.shape)} differ")
    squared_error = (student.float() - target.float()).square().sum()
    return distributed.global_mean(squared_error, student.numel(), group)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    ids: Tensor | None = None,
    group: distributed.Group = None,
) -> Tensor:
    """Symmetric InfoNCE of the global batch, exact for any number of ranks.

    With L = exp(logit_scale) * image_features @ text_features.T over all G pairs::

        loss = (sum_i LSE_j L_ij + sum_j LSE_i L_ij - 2 * sum_ij T_ij L_ij) / (2 G)

    T is the identity, or, given ``ids``, uniform over the pairs with an equal id (T_ij = 1/n_i).

    Args:
        image_features: this rank's pairs, L2-normalised, (B, D).
        text_features: likewise, (B, D).
        logit_scale: logarithm of the scale, scalar.
        ids: int64 (B,); pairs of the global batch with an equal id count as positives of each other.

    Reference: CLIP (arXiv:2103.00020), section 2.3, for the loss.
    """
    rows, columns = _gather_the_locked_side(image_features, text_features)
    return _ContrastiveLoss.apply(rows, columns, logit_scale, ids, group)


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    ids: Tensor | None = None,
    group: distributed.Group = None,
) -> Tensor:
    """Pairwise sigmoid loss of the global batch, exact for any number of ranks.

    With L = exp(logit_scale) * image_features @ text_features.T + logit_bias over all G pairs, and z_ij = 1 for
    i = j, or, given ``ids``, for an equal id, else -1::

        loss = sum_ij log(1 + exp(-z_ij L_ij)) / G

    Args:
        image_features: this rank's pairs, L2-normalised, (B, D).
        text_features: likewise, (B, D).
        logit_scale: logarithm of the scale, scalar.
        logit_bias: scalar, negative at the start since most pairs are none.
        ids: int64 (B,); pairs of the global batch with an equal id count as positives of each other.

    Reference: SigLIP (arXiv:2303.15343), section 3.2.
    """
    rows, columns = _gather_the_locked_side(image_features, text_features)
    return _SigmoidLoss.apply(rows, columns, logit_scale, logit_bias, ids, group)


def duplicate_share(ids: Tensor, group: distributed.Group = None) -> Tensor:
    """Share of the global batch's pairs whose id occurs more than once. ids (B,), result a scalar."""
    counts = distributed.row_counts(len(ids), ids.device, group)
    _, inverse, repeats = distributed.all_gather_rows(ids, counts, group).unique(
        return_inverse=True, return_counts=True
    )
    return (repeats[inverse] > 1).float().mean()


class _Pairs(NamedTuple):
    """This rank's rows against the columns of all ranks, by tiles: none larger than a tile is ever held."""

    x: Tensor  # (B, D), this rank's rows
    y: Tensor  # (G, D), every rank's columns
    scale: Tensor  # scalar
    counts: list[int]  # pairs of each rank
    group: distributed.Group

    @classmethod
    def gather(cls, rows: Tensor, columns: Tensor, logit_scale: Tensor, group: distributed.Group) -> _Pairs:
        """Features in at least float32, whatever they come in."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        counts = distributed.row_counts(len(rows), rows.device, group)
        y = distributed.all_gather_rows(columns.to(dtype), counts, group)
        return cls(rows.to(dtype), y, logit_scale.to(dtype).exp(), counts, group)

    @property
    def own(self) -> slice:
        """This rank's columns."""
        rank = distributed.rank(self.group)
        begin = sum(self.counts[:rank])
        return slice(begin, begin + self.counts[rank])

    @property
    def tile_size(self) -> int:
        size, only = (CPU_TILE, CPU_ONLY_TILE) if self.x.device.type == "cpu" else (GPU_TILE, GPU_ONLY_TILE)
        longest = max(len(self.x), len(self.y))
        return longest if longest <= only else size

    def tiles(self, kept: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns, and their scaled products, computed anew unless an only tile was kept."""
        for i in _slices(len(self.x), self.tile_size):
            scaled = self.scale * self.x[i]
            for j in _slices(len(self.y), self.tile_size):
                yield i, j, scaled @ self.y[j].T if kept is None else kept

    def only_tile(self, tile: Tensor | None) -> Tensor | None:
        """The tile where it is the only one: small enough to keep, and dear to compute again in a small batch."""
        return tile if max(len(self.x), len(self.y)) <= self.tile_size else None

    def diagonal(self, tile: Tensor, i: slice, j: slice) -> Tensor:
        """Those of a tile where a row meets its own column: a view, empty where the tile has none."""
        return tile.diagonal(self.own.start + i.start - j.start)

    def add_gradients(self, gradient: Tensor, i: slice, j: slice, grad_x: Tensor, grad_y: Tensor | None) -> None:
        """Add what the gradient of a tile of logits gives to its rows and columns, but for the scale."""
        grad_x[i].addmm_(gradient, self.y[j])
        if grad_y is not None:
            grad_y[j].addmm_(gradient.T, self.x[i])

    def input_gradients(
        self, grad_x: Tensor, grad_y: Tensor | None, weight: Tensor, dtypes: tuple[torch.dtype, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of rows, columns and logit_scale from those of `add_gradients`, each times `weight`."""
        grad_x *= weight * self.scale
        # A product of features depends on logit_scale through the exponential: dL/d(logit_scale) = L = x dL/dx.
        grad_logit_scale = torch.linalg.vecdot(grad_x, self.x).sum()
        if grad_y is not None:
            grad_y = distributed.all_reduce_sum(grad_y, self.group)[self.own].mul_(weight * self.scale).to(dtypes[1])
        return grad_x.to(dtypes[0]), grad_y, grad_logit_scale.to(dtypes[2])


class _ContrastiveLoss(torch.autograd.Function):
    """One pass over tiles serves both directions.

    Rows and columns keep log-sum-exps of their own: a maximum shared by a tile would underflow at scales
    near the clamp of 100.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        logit_scale: Tensor,
        ids: Tensor | None,
        group: distributed.Group,
    ) -> Tensor:
        with _full_precision(rows.device):
            pairs = _Pairs.gather(rows, columns, logit_scale, group)
            x, y = pairs.x, pairs.y
            positives = _Positives(ids, pairs)
            row_lse = x.new_full((len(x),), -torch.inf)  # (B,)
            column_lse = x.new_full((len(y),), -torch.inf)  # (G,)
            own_logits = x.new_empty(len(x))  # (B,), of each pair itself
            logits = None
            for i, j, logits in pairs.tiles():
                own = pairs.diagonal(logits, i, j)
                own_logits[i][max(0, j.start - i.start - pairs.own.start) :][: len(own)] = own
                row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(1))
                column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
            column_lse = _merge_log_sum_exp(column_lse, group)
            # Differences first: their sum is what a loss near 0 must keep of numbers near 100.
            loss = (row_lse - own_logits).sum() + (column_lse[pairs.own] - own_logits).sum()
            if ids is not None:
                loss -= 2 * pairs.scale * (x * (positives.of_rows(y) - y[pairs.own])).sum()
            loss /= 2 * len(y)

        ctx.save_for_backward(x, y, pairs.scale, row_lse, column_lse, pairs.only_tile(logits))
        ctx.positives, ctx.ranks = positives, (pairs.counts, group)
        ctx.input_dtypes = (rows.dtype, columns.dtype, logit_scale.dtype)
        return distributed.all_reduce_sum(loss, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, row_lse, column_lse, kept = ctx.saved_tensors
        pairs = _Pairs(x, y, scale, *ctx.ranks)
        with _full_precision(x.device):
            # With P the sum of the softmaxes of both directions, d(2 G loss)/dL = P - 2 T.
            grad_x = ctx.positives.of_rows(y).mul_(-2)  # (B, D)
            grad_y = ctx.positives.of_columns(x).mul_(-2) if ctx.needs_input_grad[1] else None  # (G, D)
            for i, j, logits in pairs.tiles(kept):
                gradient = (logits - row_lse[i, None]).exp_().add_((logits - column_lse[None, j]).exp_())
                pairs.add_gradients(gradient, i, j, grad_x, grad_y)
            weight = grad_outputs[0].to(x.dtype) * (len(pairs.counts) / (2 * len(y)))
            return *pairs.input_gradients(grad_x, grad_y, weight, ctx.input_dtypes), None, None


class _SigmoidLoss(torch.autograd.Function):
    """Each tile stands alone: backward needs no statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        ids: Tensor | None,
        group: distributed.Group,
    ) -> Tensor:
        with _full_precision(rows.device):
            pairs = _Pairs.gather(rows, columns, logit_scale, group)
            bias = logit_bias.to(pairs.x.dtype)
            all_ids = None if ids is None else distributed.all_gather_rows(ids, pairs.counts, group)  # (G,)
            losses = pairs.x.new_zeros(len(pairs.x))  # (B,)
            products = None
            for i, j, products in pairs.tiles():
                negated = _negate_positives(products + bias, pairs, all_ids, i, j)  # -z L
                losses[i] -= F.logsigmoid(negated.neg_()).sum(1)
            loss = losses.sum() / len(pairs.y)

        ctx.save_for_backward(pairs.x, pairs.y, pairs.scale, bias, pairs.only_tile(products))
        ctx.all_ids, ctx.ranks = all_ids, (pairs.counts, group)
        ctx.input_dtypes = (rows.dtype, columns.dtype, logit_scale.dtype, logit_bias.dtype)
        return distributed.all_reduce_sum(loss, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, kept = ctx.saved_tensors
        pairs = _Pairs(x, y, scale, *ctx.ranks)
        with _full_precision(x.device):
            grad_x, grad_bias = torch.zeros_like(x), torch.zeros_like(bias)
            grad_y = torch.zeros_like(y) if ctx.needs_input_grad[1] else None
            for i, j, products in pairs.tiles(kept):
                # d(G loss)/dL = -z sigmoid(-z L).
                gradient = _negate_positives(products + bias, pairs, ctx.all_ids, i, j).sigmoid_()
                gradient = _negate_positives(gradient, pairs, ctx.all_ids, i, j)
                grad_bias += gradient.sum()
                pairs.add_gradients(gradient, i, j, grad_x, grad_y)
            weight = grad_outputs[0].to(x.dtype) * (len(pairs.counts) / len(y))
            gradients = pairs.input_gradients(grad_x, grad_y, weight, ctx.input_dtypes)
            return *gradients, (grad_bias * weight).to(ctx.input_dtypes[3]), None, None


def _negate_positives(tile: Tensor, pairs: _Pairs, all_ids: Tensor | None, i: slice, j: slice) -> Tensor:
    """-z times a tile, which it may overwrite: the other sign for pairs that belong together."""
    if all_ids is None:
        pairs.diagonal(tile, i, j).neg_()
        return tile
    same = all_ids[pairs.own][i, None] == all_ids[None, j]
    return torch.where(same, -tile, tile)


def _gather_the_locked_side(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns. Raises ValueError unless both sides have one shape.

    The losses are symmetric in their two sides. A side without gradient is the one to gather: its gradient then needs
    neither computing nor sending.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)} differ"
        )
    if text_features.requires_grad and not image_features.requires_grad:
        return text_features, image_features
    return image_features, text_features


class _Positives:
    """Products with the target matrix T, (B, G): this rank's rows against all columns. T itself is never made."""

    def __init__(self, ids: Tensor | None, pairs: _Pairs) -> None:
        self.own, self.total = pairs.own, len(pairs.y)
        self.id_number: Tensor | None = None  # (G,), which of the different ids each column has
        if ids is not None:
            all_ids = distributed.all_gather_rows(ids, pairs.counts, pairs.group)
            _, self.id_number, self.repeats = all_ids.unique(return_inverse=True, return_counts=True)

    def of_rows(self, y: Tensor) -> Tensor:
        """T y: the mean of each row's positive columns, (G, D) -> (B, D), a new tensor."""
        if self.id_number is None:
            return y[self.own].clone()
        return self._mean_by_id(y, self.id_number)[self.id_number[self.own]]

    def of_columns(self, x: Tensor) -> Tensor:
        """T' x: what this rank's rows give to each column, (B, D) -> (G, D), a new tensor."""
        if self.id_number is None:
            result = x.new_zeros(self.total, x.shape[1])
            result[self.own] = x
            return result
        return self._mean_by_id(x, self.id_number[self.own])[self.id_number]

    def _mean_by_id(self, values: Tensor, id_number: Tensor) -> Tensor:
        sums = values.new_zeros(len(self.repeats), values.shape[1]).index_add_(0, id_number, values)
        return sums / self.repeats[:, None]


def _slices(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no shorter float32 products, whatever the run allows its towers: logits reach 100."""
    allowed = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)


def _merge_log_sum_exp(partial: Tensor, group: distributed.Group) -> Tensor:
    """Log-sum-exp over ranks of each rank's partial ones, (G,)."""
    if distributed.world_size(group) == 1:
        return partial
    maximum = distributed.all_reduce_max(partial, group)
    return maximum + distributed.all_reduce_sum((partial - maximum).exp(), group).log()

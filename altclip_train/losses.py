"""The two losses: distillation (stage one) and the exact global contrastive loss (stage two).

Both follow one rule over ranks: every rank returns the loss of the global batch, and its backward yields
world_size x d(global loss)/d(local tensor), so that the average over ranks which DDP and FSDP take is the
exact gradient. Ranks may hold unequal numbers of pairs; each pair weighs 1/G.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altclip_train import distributed

TILE_ROWS = 1024
TILE_COLUMNS = 4096


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
    if image_features.shape != text_features.shape:
        raise ValueError(
            f"image features {tuple(image_features.shape)} and text features {tuple(text_features.shape)} differ"
        )
    # The loss is symmetric in its two sides. A side without gradient is the one to gather: its gradient
    # then needs neither computing nor sending.
    rows, columns = image_features, text_features
    if text_features.requires_grad and not image_features.requires_grad:
        rows, columns = text_features, image_features
    return _ContrastiveLoss.apply(rows, columns, logit_scale, ids, group)


def duplicate_share(ids: Tensor, group: distributed.Group = None) -> Tensor:
    """Share of the global batch's pairs whose id occurs more than once. ids (B,), result a scalar."""
    counts = distributed.row_counts(len(ids), ids.device, group)
    _, inverse, repeats = distributed.all_gather_rows(ids, counts, group).unique(
        return_inverse=True, return_counts=True
    )
    return (repeats[inverse] > 1).float().mean()


class _ContrastiveLoss(torch.autograd.Function):
    """One pass over tiles serves both directions; no G x G matrix is ever held.

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
        with torch.autocast(rows.device.type, enabled=False):
            compute_dtype = torch.promote_types(rows.dtype, torch.float32)
            x, y_local = rows.to(compute_dtype), columns.to(compute_dtype)  # (B, D)
            scale = logit_scale.to(compute_dtype).exp()
            counts = distributed.row_counts(len(x), x.device, group)
            total, offset = sum(counts), sum(counts[: distributed.rank(group)])
            y = distributed.all_gather_rows(y_local, counts, group)  # (G, D)
            targets = _Targets(ids, counts, offset, group)

            row_lse = x.new_full((len(x),), -torch.inf)  # (B,)
            column_lse = x.new_full((total,), -torch.inf)  # (G,)
            positives = x.new_zeros(())
            for i, j in _tiles(len(x), total):
                logits = scale * x[i] @ y[j].T
                row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(1))
                column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
                positives += targets.weighted_sum(logits, i, j)
            column_lse = _merge_log_sum_exp(column_lse, group)
            own_columns = column_lse[offset : offset + len(x)]
            loss = (row_lse.sum() + own_columns.sum() - 2 * positives) / (2 * total)

        ctx.save_for_backward(x, y, scale, row_lse, column_lse)
        ctx.targets, ctx.counts, ctx.offset, ctx.group = targets, counts, offset, group
        ctx.input_dtypes = (rows.dtype, columns.dtype, logit_scale.dtype)
        return distributed.all_reduce_sum(loss, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, y, scale, row_lse, column_lse = ctx.saved_tensors
        columns_need_grad = ctx.needs_input_grad[1]
        world_size = len(ctx.counts)
        with torch.autocast(x.device.type, enabled=False):
            weight = grad_outputs[0].to(x.dtype) * (world_size / (2 * len(y)))
            grad_x = torch.zeros_like(x)
            grad_y = torch.zeros_like(y) if columns_need_grad else None
            grad_scale = x.new_zeros(())
            for i, j in _tiles(len(x), len(y)):
                logits = scale * x[i] @ y[j].T
                grad = (logits - row_lse[i, None]).exp_() + (logits - column_lse[None, j]).exp_()
                ctx.targets.subtract_twice(grad, i, j)
                grad_scale += (grad * logits).sum()
                grad_x[i] += grad @ y[j]
                if grad_y is not None:
                    grad_y[j] += grad.T @ x[i]
            grad_x *= weight * scale
            if grad_y is not None:
                grad_y = distributed.all_reduce_sum(grad_y, ctx.group)[ctx.offset : ctx.offset + len(x)]
                grad_y = (grad_y * (weight * scale)).to(ctx.input_dtypes[1])
            # L depends on logit_scale through its exponential: dL/d(logit_scale) = L.
            grad_logit_scale = (weight * grad_scale).to(ctx.input_dtypes[2])
        return grad_x.to(ctx.input_dtypes[0]), grad_y, grad_logit_scale, None, None


class _Targets:
    """The target matrix T of this rank's rows against all columns, made tile by tile."""

    def __init__(self, ids: Tensor | None, counts: list[int], offset: int, group: distributed.Group) -> None:
        self.offset = offset
        self.row_ids = self.column_ids = self.row_repeats = None
        if ids is not None:
            self.row_ids = ids
            self.column_ids = distributed.all_gather_rows(ids, counts, group)  # (G,)
            _, inverse, repeats = self.column_ids.unique(return_inverse=True, return_counts=True)
            self.row_repeats = repeats[inverse][offset : offset + len(ids)]  # (B,)

    def _tile(self, like: Tensor, rows: slice, columns: slice) -> Tensor:
        if self.row_ids is None or self.column_ids is None or self.row_repeats is None:
            i = torch.arange(rows.start, rows.stop, device=like.device) + self.offset
            j = torch.arange(columns.start, columns.stop, device=like.device)
            return (i[:, None] == j).to(like.dtype)
        same = self.row_ids[rows, None] == self.column_ids[None, columns]
        return same / self.row_repeats[rows, None].to(like.dtype)

    def _holds_none(self, rows: slice, columns: slice) -> bool:
        """True where the identity has no entry in the tile."""
        first, last = rows.start + self.offset, rows.stop + self.offset
        return self.row_ids is None and (last <= columns.start or columns.stop <= first)

    def weighted_sum(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        if self._holds_none(rows, columns):
            return logits.new_zeros(())
        return (self._tile(logits, rows, columns) * logits).sum()

    def subtract_twice(self, grad: Tensor, rows: slice, columns: slice) -> None:
        if not self._holds_none(rows, columns):
            grad.sub_(self._tile(grad, rows, columns), alpha=2)


def _tiles(rows: int, columns: int) -> list[tuple[slice, slice]]:
    return [
        (slice(i, min(i + TILE_ROWS, rows)), slice(j, min(j + TILE_COLUMNS, columns)))
        for i in range(0, rows, TILE_ROWS)
        for j in range(0, columns, TILE_COLUMNS)
    ]


def _merge_log_sum_exp(partial: Tensor, group: distributed.Group) -> Tensor:
    """Log-sum-exp over ranks of each rank's partial ones, (G,)."""
    if distributed.world_size(group) == 1:
        return partial
    maximum = distributed.all_reduce_max(partial, group)
    return maximum + distributed.all_reduce_sum((partial - maximum).exp(), group).log()

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

# Rows and columns of a tile of logits. 4 MB stay in a CPU's cache between the passes over them; a GPU wants large
# matrix products, and holds three tiles of 64 MB.
CPU_TILE, GPU_TILE = 1024, 4096


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
            scale = logit_scale.to(compute_dtype).exp()
            x, y_local = rows.to(compute_dtype), columns.to(compute_dtype)  # (B, D)
            counts = distributed.row_counts(len(x), x.device, group)
            total, offset = sum(counts), sum(counts[: distributed.rank(group)])
            y = distributed.all_gather_rows(y_local, counts, group)  # (G, D)
            positives = _Positives(ids, counts, offset, group)

            row_lse = x.new_full((len(x),), -torch.inf)  # (B,)
            column_lse = x.new_full((total,), -torch.inf)  # (G,)
            own_logits = x.new_empty(len(x))  # (B,), of each pair itself
            for i, j in _tiles(x, y):
                logits = (scale * x[i]) @ y[j].T
                diagonal = offset + i.start - j.start
                own = logits.diagonal(diagonal)  # empty where the tile holds no pair itself
                own_logits[i][max(0, -diagonal) :][: len(own)] = own
                row_lse[i] = torch.logaddexp(row_lse[i], logits.logsumexp(1))
                column_lse[j] = torch.logaddexp(column_lse[j], logits.logsumexp(0))
            column_lse = _merge_log_sum_exp(column_lse, group)
            own_columns = slice(offset, offset + len(x))
            # Differences first: their sum is what a loss near 0 must keep of numbers near 100.
            loss = (row_lse - own_logits).sum() + (column_lse[own_columns] - own_logits).sum()
            if ids is not None:
                loss -= 2 * scale * (x * (positives.of_rows(y) - y[own_columns])).sum()
            loss /= 2 * total

        ctx.save_for_backward(x, y, scale, row_lse, column_lse)
        ctx.positives, ctx.counts, ctx.offset, ctx.group = positives, counts, offset, group
        ctx.input_dtypes = (rows.dtype, columns.dtype, logit_scale.dtype)
        return distributed.all_reduce_sum(loss, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, y, scale, row_lse, column_lse = ctx.saved_tensors
        columns_need_grad = ctx.needs_input_grad[1]
        with torch.autocast(x.device.type, enabled=False):
            # With P the sum of the softmaxes of both directions, d(2 G loss)/dL = P - 2 T.
            grad_x = ctx.positives.of_rows(y).mul_(-2)  # (B, D)
            grad_y = ctx.positives.of_columns(x).mul_(-2) if columns_need_grad else None  # (G, D)
            for i, j in _tiles(x, y):
                logits = (scale * x[i]) @ y[j].T
                grad = (logits - row_lse[i, None]).exp_().add_(logits.sub_(column_lse[None, j]).exp_())
                grad_x[i].addmm_(grad, y[j])
                if grad_y is not None:
                    grad_y[j].addmm_(grad.T, x[i])
            weight = grad_outputs[0].to(x.dtype) * (len(ctx.counts) / (2 * len(y)))
            grad_x *= weight * scale
            # L is linear in x and depends on logit_scale through its exponential: dL/d(logit_scale) = L = x dL/dx.
            grad_logit_scale = (grad_x * x).sum().to(ctx.input_dtypes[2])
            if grad_y is not None:
                grad_y = distributed.all_reduce_sum(grad_y, ctx.group)[ctx.offset : ctx.offset + len(x)]
                grad_y = (grad_y * (weight * scale)).to(ctx.input_dtypes[1])
        return grad_x.to(ctx.input_dtypes[0]), grad_y, grad_logit_scale, None, None


class _Positives:
    """Products with the target matrix T, (B, G): this rank's rows against all columns. T itself is never made."""

    def __init__(self, ids: Tensor | None, counts: list[int], offset: int, group: distributed.Group) -> None:
        self.own, self.total = slice(offset, offset + counts[distributed.rank(group)]), sum(counts)
        self.id_number: Tensor | None = None  # (G,), which of the different ids each column has
        if ids is not None:
            all_ids = distributed.all_gather_rows(ids, counts, group)
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


def _tiles(rows: Tensor, columns: Tensor) -> list[tuple[slice, slice]]:
    size = CPU_TILE if rows.device.type == "cpu" else GPU_TILE
    return [
        (slice(i, min(i + size, len(rows))), slice(j, min(j + size, len(columns))))
        for i in range(0, len(rows), size)
        for j in range(0, len(columns), size)
    ]


def _merge_log_sum_exp(partial: Tensor, group: distributed.Group) -> Tensor:
    """Log-sum-exp over ranks of each rank's partial ones, (G,)."""
    if distributed.world_size(group) == 1:
        return partial
    maximum = distributed.all_reduce_max(partial, group)
    return maximum + distributed.all_reduce_sum((partial - maximum).exp(), group).log()

"""AdamW that takes gradients by rows: of a table of words, a batch reads a few thousand rows of 250,002.

A dense gradient is as large as the table, and a batch fills it with zeros, adds a few rows up, takes its norm and reads
it once more. Those zeros are all that is left out here: every row decays and moves by its momentum, as in dense AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

CHUNK = 2048  # rows that are stepped together: few enough that their gradient stays in the cache


class AdamW(torch.optim.AdamW):
    """torch's AdamW, also for sparse gradients, with the step of the equal dense ones.

    The state is that of `torch.optim.AdamW`: checkpoints of either go on in the other.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_apart(group)
        super().step()
        return loss

    def _step_apart(self, group: dict[str, Any]) -> None:
        """Step what torch's AdamW is not to see, and leave it without a gradient."""
        others = group["amsgrad"] or group["maximize"] or getattr(self, "grad_scale", None) is not None
        for parameter in group["params"]:
            if parameter.grad is None or not parameter.grad.is_sparse:
                continue
            if others:  # rules that are torch's alone
                parameter.grad = parameter.grad.to_dense()
            else:
                self._step_by_rows(parameter, group)

    def _step_by_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        values, gradient = gradient_values(table), table.grad
        assert gradient is not None
        rows, table.grad = gradient.indices()[0], None  # (R,), sorted; torch passes over what has no gradient
        if getattr(self, "found_inf", None):
            return
        state = self.state[table]
        if not state:  # what torch would put there
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        beta1, beta2 = group["betas"]
        dense = table.new_zeros(CHUNK, *table.shape[1:])
        begins = torch.arange(0, len(table), CHUNK)
        bounds = torch.searchsorted(rows, torch.cat([begins, begins.new_tensor([len(table)])])).tolist()
        for begin, first, last in zip(begins.tolist(), bounds[:-1], bounds[1:], strict=True):
            chunk, own = slice(begin, begin + CHUNK), rows[first:last] - begin
            dense[own] = values[first:last]
            adamw(
                [table[chunk]],
                [dense[: len(table) - begin]],
                [state["exp_avg"][chunk]],
                [state["exp_avg_sq"][chunk]],
                [],
                [state["step"].clone()],  # it counts the chunk's step
                fused=group["fused"],
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            dense[own] = 0
        state["step"] += 1


def gradient_values(parameter: Tensor) -> Tensor:
    """The numbers of a gradient: of a sparse one its rows (R, W), added up for each row, else all of them.

    They are the gradient's own, so that what changes them changes it.
    """
    add_up_rows(parameter)
    assert parameter.grad is not None
    return parameter.grad.values() if parameter.grad.is_sparse else parameter.grad


def add_up_rows(parameter: Tensor) -> None:
    """Leave a sparse gradient with one entry for each row."""
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()

"""Parameter groups, gradients by rows and learning-rate schedules, shared by both stages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from altclip_train import distributed
from altclip_train.adamw import AdamW, add_up_rows
from altclip_train.models.layers import WordEmbedding

Schedule = Callable[..., LambdaLR]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in groups: matrices decay; biases, norms and scalars (logit_scale) do not.

    Matrices of linear layers are apart from tables and convolutions, marked ``hidden``: `Muon` steps them in its own
    way. Scalars are apart: they are never sharded, and an optimizer takes a group as one list. Raises ValueError when
    nothing is trainable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: every tower is locked; unlock one in stage.locked")
    linear = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    groups = [
        {"params": [p for p in trainable if id(p) in linear], "weight_decay": weight_decay, "hidden": True},
        {"params": [p for p in trainable if p.ndim >= 2 and id(p) not in linear], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in trainable if p.ndim == 0], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def take_gradients_by_rows(module: nn.Module, optimizer: Optimizer) -> None:
    """Let tables of words in `module` have sparse gradients, where `optimizer` takes them and that is faster.

    On a GPU zeros cost nothing, and in a process group dense gradients are what travels.
    """
    takes = takes_gradients_by_rows(optimizer) and not distributed.is_initialized()
    for part in module.modules():
        if isinstance(part, WordEmbedding):
            by_rows = takes and part.weight.requires_grad and part.weight.device.type == "cpu"
            if by_rows and not part.sparse:
                # Else each backward of a batch in parts would append a row for every token.
                part.weight.register_post_accumulate_grad_hook(add_up_rows)
            part.sparse = by_rows


def takes_gradients_by_rows(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, AdamW) and not (optimizer.defaults["amsgrad"] or optimizer.defaults["maximize"])


def gradient_bytes(module: nn.Module, *, by_rows: bool = False) -> int:
    """Of all that trains; with `by_rows`, but for tables of words."""
    tables = {id(part.weight) for part in module.modules() if by_rows and isinstance(part, WordEmbedding)}
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad and id(p) not in tables)


def warmup_linear(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear warm-up from 0 over ``warmup_steps``, then linear decay to 0 at ``total_steps``."""
    _check_steps(total_steps, warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / (total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)


def warmup_cosine(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """Linear warm-up from 0 over ``warmup_steps``, then half a cosine down to 0 at ``total_steps``."""
    _check_steps(total_steps, warmup_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def configure_optimizers(
    module: nn.Module,
    *,
    optimizer: Callable[..., Optimizer],
    schedule: Schedule,
    weight_decay: float,
    total_steps: int,
) -> dict[str, Any]:
    """Complete a stage's partial optimizer and schedule, in the form that Lightning expects."""
    built = optimizer(parameter_groups(module, weight_decay))
    take_gradients_by_rows(module, built)
    scheduler = schedule(built, total_steps=total_steps)
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _check_steps(total_steps: int, warmup_steps: int) -> None:
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"stage.schedule.warmup_steps={warmup_steps} must be smaller than the {total_steps} steps of the run: "
            "lower it, or raise trainer.max_epochs or trainer.max_steps"
        )

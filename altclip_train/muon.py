"""Muon: hidden matrices step along their orthogonalised momentum, everything else by AdamW.

Towers that start from random weights leave the plateau of the contrastive loss many times sooner with it: features of
untrained towers lie in a few directions, and an orthogonal step moves the others as far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from altclip_train import distributed
from altclip_train.adamw import AdamW

# A quintic that pulls singular values from [0, 1] to about 1 in five steps (see the reference).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(AdamW):
    """AdamW, but for groups marked ``hidden``: those take Muon's step, with the same learning rate and weight decay.

    `parameter_groups` marks them. The step of a matrix (m, n) is scaled by 0.2 sqrt(max(m, n)), so that its entries are
    as large as AdamW's and one learning rate serves both.

    References: Muon (kellerjordan.github.io/posts/muon); Moonlight (arXiv:2502.16982), section 2.2, for the scale.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)
        self.momentum = momentum
        # Fused AdamW would let a gradient scaler leave gradients scaled, also those that it never sees.
        self._step_supports_amp_scaling = False

    def _step_apart(self, group: dict[str, Any]) -> None:
        if group.get("hidden"):
            for matrix in group["params"]:
                self._step_matrix(matrix, group)
        super()._step_apart(group)

    def _step_matrix(self, matrix: Tensor, group: dict[str, Any]) -> None:
        gradient, matrix.grad = matrix.grad, None  # AdamW passes over what has no gradient
        if gradient is None:
            return
        state = self.state[matrix]
        if not state:  # by AdamW's names, which it looks for when it loads a state
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(matrix)
        state["step"] += 1
        average = state["exp_avg"].lerp_(gradient, 1 - self.momentum)
        # The iteration needs the whole matrix: of sharded ones each rank computes the same, and keeps its part.
        update = distributed.whole(gradient.lerp(average, self.momentum))
        direction = distributed.own_part(orthogonalized(update), matrix)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Newton-Schulz iteration towards U V^T of the singular value decomposition: (m, n) -> (m, n).

    Singular values end between about 0.7 and 1.2; more exact ones do not train better. In bfloat16 on a GPU, in
    float32 on a CPU, where few kernels multiply bfloat16 fast.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)

"""FSDP2: each rank holds a part of the weights that train, of their gradients and of their optimizer state.

What is locked stays whole on every rank. It has neither gradient nor optimizer state, and where its vectors are cached
one rank calls it and another does not, so that no collective may hide in it. For the same reason scores are computed
with `whole_weights`: ranks may have unequal numbers of batches there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from altclip_train import distributed
from altclip_train.adamw import gradient_values
from altclip_train.models.layers import Block, WordEmbedding

# What is gathered when it is called, and freed again; word vectors for forward alone, which backward does not need.
UNITS = (Block, WordEmbedding)


def shard(
    model: nn.Module, mesh: DeviceMesh | None, *, methods: Iterable[str], beside: Iterable[nn.Parameter] = ()
) -> None:
    """Shard what trains of `model`, block by block; without a mesh, leave it as it is.

    Args:
        mesh: (replicas, shards of one replica).
        methods: those by which `model` is called, beside `forward`.
        beside: scalars that train and are no part of `model`.
    """
    if mesh is None or isinstance(model, FSDPModule):
        return
    if mesh.size(0) == 1:
        assert mesh.mesh_dim_names is not None
        mesh = mesh[mesh.mesh_dim_names[1]]
    # A scalar cannot be cut into parts.
    whole = {parameter for parameter in model.parameters() if not parameter.requires_grad or parameter.ndim == 0}
    for part in model.modules():
        if isinstance(part, UNITS) and not whole.issuperset(part.parameters()):
            fully_shard(part, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
            if isinstance(part, WordEmbedding):
                part.set_unshard_in_backward(False)  # type: ignore[attr-defined] - fully_shard gave it another class
    fully_shard(model, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    for method in methods:
        register_fsdp_forward_method(model, method)
    for parameter in (*whole, *beside):
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average)


def _average(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad = distributed.all_reduce_sum(parameter.grad) / distributed.world_size()


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Every rank holds all weights, as plain tensors, and calls modules by itself. All ranks must enter together.

    A `state_dict()` inside would put the weights back into their shards.
    """
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(isinstance(part, UNITS), recurse=False)
            part.reshard()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None, algorithm: str | None = None) -> None:
    """Scale gradients, sharded or whole, so that the norm of all of them is at most `max_norm`. None: leave them."""
    if max_norm is None:
        return
    if algorithm not in (None, "norm"):
        raise ValueError(f"trainer.gradient_clip_algorithm={algorithm}: expected 'norm', of all gradients together")
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    # Apart: torch takes no list that holds both kinds.
    kinds = [[p for p in trained if isinstance(p.grad, DTensor) is sharded] for sharded in (True, False)]
    kinds = [kind for kind in kinds if kind]
    norms = [distributed.whole(nn.utils.get_total_norm([gradient_values(p) for p in kind])) for kind in kinds]
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, max_norm, torch.stack(norms).norm())

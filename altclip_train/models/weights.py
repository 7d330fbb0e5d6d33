"""Modules filled from a checkpoint, and written as one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from altclip_train.models.checkpoint import Checkpoint
from altclip_train.models.spelling import Towers, canonical, published_names
from altclip_train.models.weight_files import Stored, copy_weights


def fill(
    module: nn.Module,
    checkpoint: Checkpoint,
    *,
    towers: Towers,
    part: str = "",
    without: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> None:
    """Give `module` the weights of `checkpoint`, as `dtype` on `device`; one on the meta device becomes real.

    `part` is what names in the whole model start with where the module is a part of it. Whatever starts with one
    of `without` is left as it is, in the module and in the files. Everything is checked before anything is
    allocated: raises one ValueError that lists every missing, unexpected, misshapen and wrongly typed tensor.
    """
    rest = {
        name: stored
        for name, stored in checkpoint.tensors.items()
        if name.startswith(part) and not name.removeprefix(part).startswith(without)
    }
    problems: list[str] = []
    plan: dict[str, list[Stored]] = {}
    for ours, parameter in module.state_dict().items():
        if ours.startswith(without):
            continue
        names = published_names(ours, towers)
        shape = parameter.shape if len(names) == 1 else (parameter.shape[0] // len(names), *parameter.shape[1:])
        found = [rest.pop(canonical(part + name), None) for name in names]
        problems += _problems([part + name for name in names], found, tuple(shape))
        plan[ours] = [stored for stored in found if stored is not None]
    problems += [f"unexpected: {stored.name}" for stored in rest.values()]
    if problems:
        order = ("missing", "unexpected", "shape", "type")
        problems.sort(key=lambda line: order.index(line.partition(":")[0].split()[0]))
        lines = "".join(f"\n  {line}" for line in problems)
        raise ValueError(
            f"the weights in {checkpoint.directory} do not fit the shape in its {checkpoint.config_name}:{lines}"
        )
    shapes = module.state_dict()
    state = {ours: torch.empty(shapes[ours].shape, dtype=dtype, device=device) for ours in plan}
    copy_weights(
        (stored, target)
        for ours, parts in plan.items()
        for stored, target in zip(parts, _targets(state[ours], len(parts)), strict=True)
    )
    module.load_state_dict(state, strict=False, assign=True)


def _problems(names: list[str], found: list[Stored | None], shape: tuple[int, ...]) -> list[str]:
    lines = []
    for name, stored in zip(names, found, strict=True):
        if stored is None:
            lines.append(f"missing: {name}")
        elif stored.shape != shape and (stored.shape, shape) != ((1,), ()):  # open_clip: logit_scale of one element
            lines.append(f"shape of {stored.name}: found {stored.shape}, expected {shape}")
        elif not stored.dtype.is_floating_point:
            lines.append(f"type of {stored.name}: found {stored.dtype}, expected a floating-point type")
    return lines


def _targets(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    return tensor.chunk(parts) if parts > 1 else (tensor,)


def published_state(module: nn.Module, *, towers: Towers) -> dict[str, Tensor]:
    """All weights of `module` under their published names, as contiguous tensors on the CPU, views if possible."""
    state = {}
    for ours, tensor in module.state_dict().items():
        names = published_names(ours, towers)
        parts = _targets(tensor.detach().cpu(), len(names))
        # The parts of a fused matrix lie apart in its memory, so that safetensors takes them without a copy.
        state.update({name: part.contiguous() for name, part in zip(names, parts, strict=True)})
    return state


def save_tensors(tensors: dict[str, Tensor], directory: str | Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write `model.safetensors`; a reader sees either the old file or the whole new one."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".model.safetensors.{os.getpid()}"
    try:
        save_file(tensors, partial, metadata={"format": "pt", **(metadata or {})})
        partial.replace(directory / "model.safetensors")
    finally:
        partial.unlink(missing_ok=True)

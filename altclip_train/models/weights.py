"""Modules filled from a checkpoint, and written as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from altclip_train.files import written_whole
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
    shapes = {ours: tensor.shape for ours, tensor in module.state_dict().items() if not ours.startswith(without)}
    sources = _find_sources(shapes, checkpoint, towers=towers, part=part, without=without)
    state = {ours: torch.empty(shape, dtype=dtype, device=device) for ours, shape in shapes.items()}
    copy_weights(
        (stored, target)
        for ours, parts in sources.items()
        for stored, target in zip(parts, _targets(state[ours], len(parts)), strict=True)
    )
    module.load_state_dict(state, strict=False, assign=True)


def _find_sources(
    shapes: Mapping[str, torch.Size], checkpoint: Checkpoint, *, towers: Towers, part: str, without: tuple[str, ...]
) -> dict[str, list[Stored]]:
    """The stored tensors that make up each of ours. Raises ValueError, with all problems, as `fill` does."""
    rest = {
        name: stored
        for name, stored in checkpoint.tensors.items()
        if name.startswith(part) and not name.removeprefix(part).startswith(without)
    }
    problems: list[str] = []
    sources: dict[str, list[Stored]] = {}
    for ours, shape in shapes.items():
        names = [part + name for name in published_names(ours, towers)]
        expected = tuple(shape) if len(names) == 1 else (shape[0] // len(names), *shape[1:])
        found = [rest.pop(canonical(name), None) for name in names]
        problems += _problems(names, found, expected)
        sources[ours] = [stored for stored in found if stored is not None]
    problems += [f"unexpected: {stored.name}" for stored in rest.values()]
    if problems:
        order = ("missing", "unexpected", "shape", "type")
        problems.sort(key=lambda line: order.index(line.partition(":")[0].split()[0]))
        lines = "".join(f"\n  {line}" for line in problems)
        raise ValueError(
            f"the weights in {checkpoint.directory} do not fit the shape in its {checkpoint.config_name}:{lines}"
        )
    return sources


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
    for ours, tensor in module.named_parameters():  # state_dict() would put sharded weights back into their shards
        names = published_names(ours, towers)
        parts = _targets(tensor.detach().cpu(), len(names))
        # The parts of a fused matrix lie apart in its memory, so that safetensors takes them without a copy.
        state.update({name: part.contiguous() for name, part in zip(names, parts, strict=True)})
    return state


def save_tensors(tensors: dict[str, Tensor], file: Path, *, metadata: dict[str, str]) -> None:
    """Write a safetensors file with the mode that any new file gets; a reader sees either the old or the whole new one.

    safetensors itself lets nobody but the owner read what it writes.
    """
    with written_whole(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata={"format": "pt", **metadata})
        partial.chmod(mode)

"""Published weight names <-> our modules, and the files that hold them.

Our towers differ from the published layout in three ways: queries, keys and values are one matrix; the blocks
are called `layers` in every tower; norms have plain names. Everything else is spelled as published.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

# Tables that older checkpoints store although they are constants.
_CONSTANTS = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")


@dataclass(frozen=True, kw_only=True)
class TowerLayout:
    """Published spelling of one kind of tower; names are relative to the tower."""

    layers: str
    block: Mapping[str, tuple[str, ...]]  # our part of a block -> published parts, fused in this order
    rest: Mapping[str, str]  # our prefix -> published prefix, first match wins

    def published(self, name: str) -> tuple[str, ...]:
        """Published names of the tensors that make up our tensor `name`."""
        in_block = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if in_block:
            number, part, kind = in_block.groups()
            return tuple(f"{self.layers}.{number}.{published}.{kind}" for published in self.block[part])
        for ours, published in self.rest.items():
            if name.startswith(f"{ours}."):
                return (published + name.removeprefix(ours),)
        return (name,)


CLIP_TOWER = TowerLayout(
    layers="encoder.layers",
    block={
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.out_proj",),
        "norm1": ("layer_norm1",),
        "norm2": ("layer_norm2",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
    rest={"pre_layernorm": "pre_layrnorm"},
)

XLMR_TOWER = TowerLayout(
    layers="roberta.encoder.layer",
    block={
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "norm1": ("attention.output.LayerNorm",),
        "norm2": ("output.LayerNorm",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    rest={"embeddings.norm": "roberta.embeddings.LayerNorm", "embeddings": "roberta.embeddings"},
)

Towers = Mapping[str, TowerLayout]  # our module prefix, with its dot ("" for a tower alone) -> layout


def load_published(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    towers: Towers,
    source: str | Path,
    optional: str = "",
) -> None:
    """Fill `module` with published tensors as float32; one on the meta device is materialised.

    Raises one ValueError that lists every missing, unexpected and misshapen tensor. Tensors of the module
    whose name starts with the pattern `optional` may be absent and then stay as they are.
    """
    found = {_canonical(name): name for name in tensors if not _CONSTANTS.search(name)}
    state: dict[str, Tensor] = {}
    missing, misshapen, used = [], [], set()
    for ours, parameter in module.state_dict().items():
        published = _published(ours, towers)
        if optional and re.match(optional, ours) and not any(_canonical(name) in found for name in published):
            continue
        parts = []
        for name in published:
            stored = found.get(_canonical(name))
            if stored is None:
                missing.append(name)
                continue
            used.add(_canonical(name))
            expected = _part_shape(parameter, len(published))
            if tensors[stored].shape != expected:
                misshapen.append(f"{stored}: found {tuple(tensors[stored].shape)}, expected {tuple(expected)}")
            parts.append(tensors[stored])
        if len(parts) == len(published) and not misshapen:
            # A copy, because tensors read from a file are windows into it.
            state[ours] = torch.cat(parts).float() if len(parts) > 1 else parts[0].to(torch.float32, copy=True)
    unexpected = [name for key, name in found.items() if key not in used]
    if missing or unexpected or misshapen:
        report = [f"the weights in {source} do not fit the shape in its config.json:"]
        report += [f"  missing: {name}" for name in missing]
        report += [f"  unexpected: {name}" for name in unexpected]
        report += [f"  shape of {line}" for line in misshapen]
        raise ValueError("\n".join(report))
    module.load_state_dict(state, strict=False, assign=True)


def published_state(module: nn.Module, *, towers: Towers) -> dict[str, Tensor]:
    """All weights of `module` under their published names, as separate contiguous tensors on the CPU."""
    state = {}
    for ours, tensor in module.state_dict().items():
        names = _published(ours, towers)
        parts = tensor.detach().cpu().chunk(len(names)) if len(names) > 1 else (tensor.detach().cpu(),)
        # safetensors refuses tensors that share memory, which the parts of a fused matrix do.
        state.update({name: part.clone().contiguous() for name, part in zip(names, parts, strict=True)})
    return state


def save_tensors(tensors: dict[str, Tensor], directory: str | Path) -> None:
    """Write `model.safetensors`; a reader sees either the old file or the whole new one."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".model.safetensors.{os.getpid()}"
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(directory / "model.safetensors")
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(directory: str | Path, *, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a model directory whose name starts with `prefix`, which is cut off.

    Reads `model.safetensors`, `pytorch_model.bin` or the index of either; pickles with `weights_only=True`.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(Path(directory)):
        reader = _read_safetensors if file.suffix == ".safetensors" else _read_pickle
        tensors.update(reader(file, lambda name: name.startswith(prefix)))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _weight_files(directory: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = [directory / shard for shard in sorted(set(shards))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise FileNotFoundError(f"{index} names files that are missing: {', '.join(absent)}")
            return files
    held = ", ".join(sorted(entry.name for entry in directory.iterdir())) or "nothing"
    raise FileNotFoundError(
        f"{directory} holds no model.safetensors or pytorch_model.bin or an index of them, it holds {held}"
    )


def _read_safetensors(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as reader:
        for name in reader.keys():  # noqa: SIM118 (not a mapping)
            if wanted(name):
                yield name, reader.get_tensor(name)


def _read_pickle(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    # Files from before torch 1.6 are no zip archives and cannot be mapped.
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    for name, tensor in content.items():
        if wanted(name):
            yield name, tensor


def _published(ours: str, towers: Towers) -> tuple[str, ...]:
    for prefix, layout in towers.items():
        if ours.startswith(prefix):
            return tuple(prefix + name for name in layout.published(ours.removeprefix(prefix)))
    return (ours,)


def _canonical(name: str) -> str:
    """One spelling of the two that both towers are written with: `encoder.layer.N` and `encoder.layers.N`."""
    return re.sub(r"\bencoder\.layer\.(?=\d)", "encoder.layers.", name)


def _part_shape(parameter: Tensor, parts: int) -> torch.Size:
    return parameter.shape if parts == 1 else torch.Size([parameter.shape[0] // parts, *parameter.shape[1:]])

"""What stage two of the paper's model sends, holds and loses on 1 to 512 GPUs: ``python benchmarks/scaling.py``.

Bytes are counted by formulas that `tests/distributed/test_scaling.py` holds against what ranks really send. Efficiency
is expected, not measured: it follows from them and from the speeds of `CLUSTER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from altclip_train.models import AltCLIPModel
from altclip_train.models.config import AltCLIPConfig
from altclip_train.models.flops import image_flops, text_flops
from altclip_train.models.layers import Block, WordEmbedding
from altclip_train.types import PackedTokens

FLOAT32, INT64 = 4, 8
PAIRS, TOKENS = 128, 20  # on each device; of each text


class Cluster(NamedTuple):
    """A node of 8 A100, and nodes joined by one 200 Gb/s adapter for each GPU. Speeds in one direction."""

    devices_per_node: int = 8
    flops: float = 312e12 * 0.4  # dense bf16 by the data sheet, and the share of it that such towers reach
    inside: float = 230e9  # bytes per second of each device within its node
    between: float = 25e9  # bytes per second of each device's adapter


CLUSTER = Cluster()


class Weights(NamedTuple):
    """Numbers of weights, by how FSDP2 treats them."""

    blocks: int  # trained
    words: int  # trained
    root: int  # whatever else is trained
    locked: int

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        trained = {p for p in model.parameters() if p.requires_grad}
        kinds = [
            {p for part in model.modules() if isinstance(part, kind) for p in part.parameters()} & trained
            for kind in (Block, WordEmbedding)
        ]
        blocks, words, every = (sum(p.numel() for p in some) for some in (*kinds, trained))
        return cls(blocks, words, every - blocks - words, sum(p.numel() for p in model.parameters()) - every)

    @property
    def trained(self) -> int:
        return self.blocks + self.words + self.root


def gathered(size: float, ranks: int) -> float:
    """Bytes that each rank sends of a ring's all-gather to `size` bytes; as many in a reduce-scatter of them."""
    return size * (ranks - 1) / ranks


def reduced(size: float, ranks: int) -> float:
    """Bytes that each rank sends of a ring's all-reduce: a reduce-scatter, then an all-gather."""
    return 2 * gathered(size, ranks)


def ddp_bytes(weights: Weights, ranks: int) -> float:
    """Each step: all gradients."""
    return reduced(FLOAT32 * weights.trained, ranks)


def shard_bytes(weights: Weights, shards: int) -> float:
    """FSDP2, within a copy: weights in forward and blocks again in backward, then all gradients."""
    return gathered(FLOAT32 * (3 * weights.blocks + 2 * weights.words + 2 * weights.root), shards)


def replica_bytes(weights: Weights, shards: int, replicas: int) -> float:
    """FSDP2, between copies: the gradients of each device's own part."""
    return reduced(FLOAT32 * weights.trained / shards, replicas)


def loss_bytes(pairs: int, width: int, ranks: int, *, ids: bool) -> float:
    """The exact loss with a locked image tower: picture features, ids of captions, log-sum-exps of columns twice."""
    whole_batch = pairs * ranks
    rows = gathered(whole_batch * (FLOAT32 * width + INT64 * ids) + INT64 * ranks, ranks)
    return rows + 2 * reduced(FLOAT32 * whole_batch, ranks) + reduced(FLOAT32, ranks)


def ddp_memory(weights: Weights) -> float:
    """Weights, gradients, their buckets, and Adam's two averages."""
    return FLOAT32 * (weights.locked + 5 * weights.trained)


def fsdp_memory(weights: Weights, shards: int) -> float:
    """The same without buckets, in parts; whole for a moment: word vectors and their gradient, and what is no block."""
    return FLOAT32 * (weights.locked + 4 * weights.trained / shards + 2 * (weights.words + weights.root))


def loss_memory(pairs: int, width: int, ranks: int) -> float:
    """Picture features of all ranks."""
    return FLOAT32 * width * pairs * ranks


class Row(NamedTuple):
    devices: int
    ddp_sent: float
    fsdp_sent: float
    loss_sent: float
    ddp_memory: float
    fsdp_memory: float
    ddp_efficiency: float
    fsdp_efficiency: float


def row(weights: Weights, width: int, flops: float, devices: int, cluster: Cluster = CLUSTER) -> Row:
    """`flops` are those of one device's step, forward and backward."""
    shards = min(devices, cluster.devices_per_node)
    replicas = devices // shards
    seconds = flops / cluster.flops
    # A ring over all devices leaves a node once, and all its adapters share that.
    speed = cluster.inside if replicas == 1 else min(cluster.inside, cluster.devices_per_node * cluster.between)
    loss = loss_bytes(PAIRS, width, devices, ids=False)
    ddp, within = ddp_bytes(weights, devices), shard_bytes(weights, shards)
    between = replica_bytes(weights, shards, replicas)
    # Gradients travel during backward, two thirds of a step, and FSDP2's weights in forward too. The loss waits.
    ddp_waits = max(0.0, ddp / speed - seconds * 2 / 3) + loss / speed
    fsdp_waits = max(0.0, within / cluster.inside + between / cluster.between - seconds) + loss / speed
    features = loss_memory(PAIRS, width, devices)
    return Row(
        devices,
        ddp,
        within + between,
        loss,
        ddp_memory(weights) + features,
        fsdp_memory(weights, shards) + features,
        seconds / (seconds + ddp_waits),
        seconds / (seconds + fsdp_waits),
    )


def papers_model() -> AltCLIPModel:
    """Without weights; the image tower locked, as in stage two."""
    import yaml

    file = Path(__file__).resolve().parents[1] / "configs" / "model" / "altclip_vitl14_xlmr_large.yaml"
    shape: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    text = {**shape["text"], "project_dim": shape["teacher_text"]["hidden_size"]}
    config = AltCLIPConfig.from_text_vision_configs(
        text_config=text, vision_config=shape["image"], projection_dim=shape["projection_dim"]
    )
    with torch.device("meta"):
        model = AltCLIPModel(config)
    for part in (model.vision_model, model.visual_projection):
        part.requires_grad_(False)
    return model


def table(*, cached: bool) -> str:
    """As Markdown; `cached`: picture features are read, not computed."""
    model = papers_model()
    weights, width = Weights.of(model), model.config.projection_dim
    tokens = PackedTokens.from_lists([[5] * TOKENS] * PAIRS)
    flops = 3 * int(text_flops(model.text_model, tokens)) + (0 if cached else image_flops(model, PAIRS))
    lines = [
        "| GPUs | DDP sends, GB | FSDP2 sends | loss sends, MB | DDP holds, GB | FSDP2 holds | DDP | FSDP2 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for devices in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        one = row(weights, width, flops, devices)
        sent = [f"{one.ddp_sent / 1e9:.2f}", f"{one.fsdp_sent / 1e9:.2f}", f"{one.loss_sent / 1e6:.1f}"]
        held = [f"{one.ddp_memory / 1e9:.1f}", f"{one.fsdp_memory / 1e9:.1f}"]
        efficiency = [f"{one.ddp_efficiency:.0%}", f"{one.fsdp_efficiency:.0%}"]
        lines.append("| " + " | ".join([str(devices), *sent, *held, *efficiency]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    for cached in (True, False):
        print(f"picture features {'cached' if cached else 'computed'}:\n\n{table(cached=cached)}\n")

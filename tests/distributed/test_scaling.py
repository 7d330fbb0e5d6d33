"""The formulas of benchmarks/scaling.py against the bytes that gloo ranks really write to their sockets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from altclip_train.losses import contrastive_loss
from altclip_train.models import AltCLIPTextModel
from altclip_train.models.config import AltCLIPTextConfig
from altclip_train.sharding import shard
from altclip_train.types import PackedTokens
from benchmarks import scaling
from tests.distributed.processes import run_on_ranks

pytestmark = pytest.mark.distributed

PAIRS, WIDTH = 512, 96


def bytes_written() -> int:
    """By this process so far, to sockets too: that is where gloo's messages go."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("wchar")).split()[1])


def written_by(step: Callable[[], object]) -> int:
    """The third time, when everything that is sent once has been sent."""
    for _ in range(2):
        step()
    dist.barrier()
    before = bytes_written()
    step()
    return bytes_written() - before


class Encoder(nn.Module):
    """What DDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 256}
        self.tower = AltCLIPTextModel(AltCLIPTextConfig.from_fields({**shape, "vocab_size": 3000, "project_dim": 40}))
        self.tower.embeddings.position_embeddings.requires_grad_(False)

    def forward(self, tokens: PackedTokens) -> torch.Tensor:
        return self.tower.encode_packed(tokens)


def measured(rank: int) -> dict[str, int]:  # noqa: ARG001
    tokens, world = PackedTokens.from_lists([[0, 7, 8, 2], [0, 9, 2]]), dist.get_world_size()
    encoder = Encoder()
    ddp = DistributedDataParallel(Encoder())
    found = {"ddp": written_by(lambda: ddp(tokens).sum().backward())}

    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicas", "shards"))
    shard(encoder.tower, mesh, methods=["encode_packed"])
    found["fsdp"] = written_by(lambda: encoder(tokens).sum().backward())
    if world == 4:
        replicated = Encoder()
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        shard(replicated.tower, mesh, methods=["encode_packed"])
        found["hsdp"] = written_by(lambda: replicated(tokens).sum().backward())

    image, text = (F.normalize(torch.randn(PAIRS, WIDTH), dim=-1) for _ in range(2))
    scale, ids = torch.tensor(math.log(10.0), requires_grad=True), torch.arange(PAIRS)
    text.requires_grad_()
    found["loss"] = written_by(lambda: contrastive_loss(image, text, scale).backward())
    found["loss with ids"] = written_by(lambda: contrastive_loss(image, text, scale, ids=ids).backward())
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_that_ranks_send_are_those_of_the_formulas(tmp_path: Path, ranks: int):
    found = run_on_ranks(measured, ranks, tmp_path)
    weights = scaling.Weights.of(Encoder())
    # gloo has no reduce-scatter: torch lets it reduce everything everywhere, which sends that much more than NCCL.
    more = {shards: scaling.gathered(scaling.FLOAT32 * weights.trained, shards) for shards in (2, 4)}
    expected = {
        "ddp": scaling.ddp_bytes(weights, ranks),
        "fsdp": scaling.shard_bytes(weights, ranks) + more[ranks],
        "loss": scaling.loss_bytes(PAIRS, WIDTH, ranks, ids=False),
        "loss with ids": scaling.loss_bytes(PAIRS, WIDTH, ranks, ids=True),
    }
    if ranks == 4:
        expected["hsdp"] = scaling.shard_bytes(weights, 2) + more[2] + scaling.replica_bytes(weights, 2, 2)
    for name, size in expected.items():
        mean = sum(rank[name] for rank in found) / ranks
        print(f"{ranks} ranks, {name}: {mean:.0f} bytes each, by the formula {size:.0f}")
        assert mean == pytest.approx(size, rel=0.05), name

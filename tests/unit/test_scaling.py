"""Formulas of benchmarks/scaling.py by hand, and the page that shows what they give."""

from __future__ import annotations

import pytest
from torch import nn

from altclip_train.models.layers import PostNormBlock, WordEmbedding
from benchmarks import scaling
from benchmarks.scaling import Weights
from tests.workspace import REPOSITORY


def test_weights_are_told_apart():
    block = PostNormBlock(
        width=4, heads=2, hidden=8, activation="gelu", eps=1e-5, dropout=0.0, attention_dropout=0.0
    )  # qkv 4 x 12 + 12, out 4 x 4 + 4, two norms of 8, MLP 4 x 8 + 8 and 8 x 4 + 4
    head, locked = nn.Linear(4, 3), nn.Linear(4, 5).requires_grad_(False)
    assert Weights.of(nn.ModuleList([block, WordEmbedding(10, 4), head, locked])) == (172, 40, 15, 25)


def test_bytes_by_hand():
    weights = Weights(blocks=100, words=50, root=10, locked=1000)
    # Gradients of 640 bytes around a ring of 4: three quarters, twice.
    assert scaling.ddp_bytes(weights, 4) == 960
    # Blocks thrice, the rest twice: 1,680 bytes, three quarters of it.
    assert scaling.shard_bytes(weights, 4) == 1260
    # A quarter of the gradients, around a ring of 2.
    assert scaling.replica_bytes(weights, 4, 2) == 160
    # 3 pairs on each of 2 ranks: the other's 3 x 5 floats, 3 ids and its count; 6 sums twice, and the loss.
    assert scaling.loss_bytes(3, 5, 2, ids=True) == 3 * 5 * 4 + 3 * 8 + 8 + 2 * 6 * 4 + 4


def test_one_device_sends_nothing_and_waits_for_nothing():
    one = scaling.row(Weights(100, 50, 10, 1000), 5, flops=1e12, devices=1)
    assert one[1:4] == (0, 0, 0)
    assert one[6:] == (1, 1)


def test_the_papers_model_has_its_published_size():
    weights = Weights.of(scaling.papers_model())
    assert sum(weights) == 864_186_113
    assert weights.words == 250_002 * 1024


@pytest.mark.parametrize("cached", [True, False])
def test_the_page_shows_what_the_command_prints(cached: bool):
    assert scaling.table(cached=cached) in (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")

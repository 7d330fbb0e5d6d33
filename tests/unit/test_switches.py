"""Gradient checkpointing, compilation and precision: what they change, and what not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import mse_loss

from altclip_train.models import (
    CLIPTextModel,
    build_text_student,
    compile_blocks,
    set_dropout,
    set_gradient_checkpointing,
)
from altclip_train.models.config import CLIPTextConfig
from altclip_train.training.resolvers import fastest_precision
from altclip_train.types import PackedTokens

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(params=["student", "teacher"])
def tower(request):
    torch.manual_seed(0)
    if request.param == "teacher":
        return CLIPTextModel(CLIPTextConfig(vocab_size=40, max_position_embeddings=40, eos_token_id=2, **SHAPE)).train()
    return build_text_student(
        student=None, project_dim=8, vocab_size=40, max_position_embeddings=44, pad_token_id=1, **SHAPE
    ).train()


def texts(seed, count=7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    return PackedTokens.from_lists([torch.randint(4, 40, (n,), generator=generator).tolist() for n in lengths])


def features_and_gradients(tower, tokens):
    tower = copy.deepcopy(tower)
    torch.manual_seed(1)  # what dropout draws
    features = tower.encode_packed(tokens)
    mse_loss(features, torch.ones_like(features)).backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return features.detach(), gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_blocks_give_the_very_same_features_and_gradients(tower, dropout):
    set_dropout(tower, dropout)
    expected = features_and_gradients(tower, texts(0))
    set_gradient_checkpointing(tower, True)
    torch.testing.assert_close(features_and_gradients(tower, texts(0)), expected, rtol=0, atol=0)


def saved_numbers(tower):
    saved = 0

    def count(tensor):
        nonlocal saved
        saved += tensor.numel() if tensor.is_floating_point() and not tensor.requires_grad else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        tower.encode_packed(texts(0))
    return saved


def test_checkpointed_blocks_keep_little_more_than_their_inputs(tower):
    whole = saved_numbers(tower)
    set_gradient_checkpointing(tower, True)
    assert saved_numbers(tower) < whole / 4


# Tracing asks every tensor for its gradient, and hides torch's warning of that in a way that an error gets past.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_are_compiled_for_the_first_batch_and_for_no_later_one(tower):
    expected = [features_and_gradients(tower, texts(seed)) for seed in range(4)]
    counter = CompileCounter()
    torch._dynamo.reset()
    compile_blocks(tower, backend=counter)
    compiled = []
    for seed in range(4):  # other lengths, other groups of equal length, other numbers of texts and tokens
        tower.zero_grad()
        features = tower.encode_packed(texts(seed))
        mse_loss(features, torch.ones_like(features)).backward()
        compiled.append(counter.frame_count)
        torch.testing.assert_close(features.detach(), expected[seed][0])
        for name, gradient in expected[seed][1].items():
            torch.testing.assert_close(tower.get_parameter(name).grad, gradient)
    assert 0 < compiled[0] <= 8  # blocks share their code
    assert set(compiled) == {compiled[0]}


def test_bfloat16_is_chosen_on_a_cpu_that_computes_it_and_on_no_other(monkeypatch):
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        native = "avx512_bf16" in cpuinfo.read_text(encoding="utf-8")
        assert fastest_precision("cpu") == ("bf16-mixed" if native else "32-true")
    for native, precision in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert fastest_precision("cpu") == precision

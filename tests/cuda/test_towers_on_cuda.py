"""Text towers on a GPU, in each form of attention, against float64 on the CPU; and what they ask of the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from altclip_train.losses import contrastive_loss, distillation_loss
from altclip_train.models import (
    AltCLIPTextModel,
    CLIPTextConfig,
    CLIPTextModel,
    attention,
    build_text_student,
    compile_blocks,
)
from altclip_train.types import PackedTokens
from tests.tiny_models import perturb
from tests.unit.test_towers import gradients

pytest.importorskip("triton", reason="comes with CUDA builds of torch")
from altclip_train.models.short_attention import short_attention

WIDE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 79,
}
Tower = AltCLIPTextModel | CLIPTextModel


@pytest.fixture(params=["student", "teacher"])
def tower(request: pytest.FixtureRequest) -> Tower:
    """In float64 on the CPU; the second is causal."""
    if request.param == "student":
        built: Tower = build_text_student(student=None, project_dim=24, **WIDE)
    else:
        built = CLIPTextModel(CLIPTextConfig(**{**WIDE, "eos_token_id": 96}))
    perturb(built, scale=0.05)
    return built.double()


def texts(seed: int, count: int = 33) -> PackedTokens:
    """Of 2 to 77 tokens, some of one length; the last of each is the end of a text."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    lengths[seed % count] = 77
    return PackedTokens.from_lists(
        [[0, *torch.randint(2, 96, (length - 2,), generator=generator).tolist(), 96] for length in lengths]
    )


def to_cuda(tokens: PackedTokens) -> PackedTokens:
    return PackedTokens(tokens.input_ids.cuda(), tokens.cumulative_lengths.cuda(), tokens.max_length)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


def expected_of(tower: Tower, tokens: PackedTokens) -> tuple[Tensor, dict[str, Tensor]]:
    features = tower.encode_packed(tokens)
    return features.detach(), gradients(tower, features.double())


def check(features: Tensor, tower: Tower, expected: tuple[Tensor, dict[str, Tensor]], tolerance: float) -> None:
    assert relative_error(features.detach(), expected[0]) < tolerance
    found = gradients(tower, features.double())  # its weights count further than half precision can
    # One number for all: a bias of keys has no gradient but rounding.
    errors = [(found[name].cpu().double() - value).square().sum() for name, value in expected[1].items()]
    whole = sum(value.square().sum() for value in expected[1].values())
    assert (sum(errors) / whole).sqrt() < 2 * tolerance


TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("form", ["variable_length", "padded"])
def test_features_and_gradients_are_near_float64(
    tower: Tower, dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch
):
    tokens = texts(1)
    expected = expected_of(tower, tokens)
    tower.float().cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        assert attention.attention_form(next(tower.parameters()), dropout=0.0) == "variable_length"
        monkeypatch.setattr(f"{type(tower).__module__}.attention_form", lambda *_, **__: form)
        features = tower.encode_packed(to_cuda(tokens))
    check(features, tower, expected, TOLERANCES[dtype])


def test_gradients_are_the_same_each_time(tower: Tower):
    tower.float().cuda()
    tokens = to_cuda(texts(3))
    found = []
    for _ in range(3):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            features = tower.encode_packed(tokens)
        found.append(gradients(tower, features.double())["layers.0.attention.qkv.weight"])
    assert all(torch.equal(again, found[0]) for again in found[1:])


@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_short_attention_equals_that_of_each_text_by_itself(width: int, causal: bool, single: bool):
    if causal and single:
        pytest.skip("a single query sees its whole text")
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 64, 77, 200]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 3, width, generator=generator, dtype=torch.float64) for _ in range(3))
    q = q[: len(lengths)] if single else q
    counts = [1] * len(lengths) if single else lengths
    exact = [part.requires_grad_() for part in (q, k, v)]
    split = zip(q.split(counts), k.split(lengths), v.split(lengths), strict=True)
    expected = torch.cat(
        [
            nn.functional.scaled_dot_product_attention(
                *(part.transpose(0, 1) for part in parts), is_causal=causal
            ).transpose(0, 1)
            for parts in split
        ]
    )
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (expected * weights).sum().backward()
    moved = [part.detach().float().cuda().requires_grad_() for part in exact]
    ends = [nn.functional.pad(torch.tensor(rows).cumsum(0), (1, 0)).int().cuda() for rows in (counts, lengths)]
    found = short_attention(*moved, ends=(ends[0], ends[1]), longest=(max(counts), max(lengths)), causal=causal)
    (found * weights.float().cuda()).sum().backward()
    assert relative_error(found.detach(), expected.detach()) < 1e-6
    for part, reference in zip(moved, exact, strict=True):
        assert relative_error(part.grad, reference.grad) < 3e-6


def test_dropout_of_attention_takes_the_padded_form_and_drops_as_often_as_asked():
    # Equal keys: every weight is 1 / length, so that the output counts how many weights were kept.
    length, heads, width = 64, 4, 16
    tokens = to_cuda(PackedTokens.from_lists([[1] * length] * 200))
    layout, _ = attention.PackedLayout.of(tokens, causal=False, form="padded")
    zeros = torch.zeros(200 * length, heads, width, device="cuda")
    kept = attention.PACKED_ATTENTION["padded"](zeros, zeros, zeros + 1, layout, dropout=0.25)
    assert kept.std() > 0.01
    assert abs(kept.mean().item() - 1) < 0.01


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning", "ignore:The .grad attribute:UserWarning"
)  # torch's own, when it imports inductor
def test_compiled_blocks_equal_those_that_are_not_and_are_compiled_once(tower: Tower):
    tower.float().cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = [expected_of(tower, to_cuda(texts(seed, 20 + seed))) for seed in range(5)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(tower)
    graphs = []
    for seed, (features, its_gradients) in enumerate(expected):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = tower.encode_packed(to_cuda(texts(seed, 20 + seed)))
        assert relative_error(found, features.cpu().double()) < 1e-2
        assert (
            relative_error(
                gradients(tower, found.double())["layers.0.mlp.fc1.weight"],
                its_gradients["layers.0.mlp.fc1.weight"].cpu().double(),
            )
            < 2e-2
        )
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[1] == graphs[-1] <= 8


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_either_stage_never_waits_for_the_device(tower: Tower, dtype: torch.dtype):
    tower.float().cuda()
    tokens, other = to_cuda(texts(2)), torch.randn(33, tower.output_width, device="cuda")
    scale = nn.Parameter(torch.tensor(2.6592, device="cuda"))
    optimizer = torch.optim.AdamW([*tower.parameters(), scale], lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            features = tower.encode_packed(tokens)
            unit = nn.functional.normalize(features.float(), dim=-1)
            loss = contrastive_loss(nn.functional.normalize(other, dim=-1), unit, scale)
            loss = loss + distillation_loss(features, other)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # handles and kernels are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")

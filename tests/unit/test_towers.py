"""Towers on packed texts and pictures, with gradients, against slow references that write every step out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from altclip_train.models import (
    AltCLIPTextModel,
    CLIPTextConfig,
    CLIPTextModel,
    pack_padded,
)
from altclip_train.types import PackedTokens
from tests.tiny_models import (
    CLIP_TEXT_FIELDS,
    CLIP_TEXTS,
    STUDENT_TEXTS,
    padded,
    perturb,
    tiny_clip,
    tiny_student,
)


def slow_attention(attention: torch.nn.Module, x: Tensor, allowed: Tensor) -> Tensor:
    """Head by head with a written-out softmax: (B, L, W), (B, L, L) -> (B, L, W)."""
    width = x.shape[-1]
    query, key, value = (
        x @ weight.T + bias
        for weight, bias in zip(attention.qkv.weight.split(width), attention.qkv.bias.split(width), strict=True)
    )
    size = width // attention.heads
    heads = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(~allowed, -math.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        heads.append(weights @ value[..., part])
    return torch.cat(heads, dim=-1) @ attention.out.weight.T + attention.out.bias


def slow_norm(norm: torch.nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def slow_mlp(mlp: torch.nn.Module, x: Tensor, *, quick: bool) -> Tensor:
    x = x @ mlp.fc1.weight.T + mlp.fc1.bias
    x = x * torch.sigmoid(1.702 * x) if quick else 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x @ mlp.fc2.weight.T + mlp.fc2.bias


def slow_student(model: AltCLIPTextModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Every layer on every padded position; pooled at the end. (B, L), (B, L) -> (B, D)"""
    table = model.embeddings
    positions = mask.cumsum(1) * mask + 1
    x = table.word_embeddings.weight[ids] + table.token_type_embeddings.weight[0]
    x = slow_norm(table.norm, x + table.position_embeddings.weight[positions])
    allowed = mask.bool()[:, None, :].expand(-1, ids.shape[1], -1)
    for block in model.layers:
        x = slow_norm(block.norm1, x + slow_attention(block.attention, x, allowed))
        x = slow_norm(block.norm2, x + slow_mlp(block.mlp, x, quick=False))
    return (slow_norm(model.pre_LN, x) @ model.transformation.weight.T + model.transformation.bias)[:, 0]


def slow_clip_text(model: CLIPTextModel, ids: Tensor, ends: list[int]) -> Tensor:
    """Every layer on every padded position; pooled at the given columns. (B, L) -> (B, W)"""
    length = ids.shape[1]
    x = model.embeddings.token_embedding.weight[ids] + model.embeddings.position_embedding.weight[:length]
    allowed = torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), -1, -1)
    for block in model.layers:
        x = x + slow_attention(block.attention, slow_norm(block.norm1, x), allowed)
        x = x + slow_mlp(block.mlp, slow_norm(block.norm2, x), quick=True)
    return slow_norm(model.final_layer_norm, x)[torch.arange(len(ids)), torch.tensor(ends)]


def gradients(model: torch.nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Gradient of a loss that tells every text and every feature apart."""
    count = torch.arange(1, features.numel() + 1, dtype=features.dtype, device=features.device)
    weights = count.view_as(features).sin()
    model.zero_grad()
    (features * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_student_packed_equals_padded_reference_with_gradients() -> None:
    model = tiny_student().double()
    packed = model.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS))
    reference = slow_student(model, *padded(STUDENT_TEXTS, filler=1))
    torch.testing.assert_close(packed, reference, rtol=0, atol=1e-11)
    expected = gradients(model, reference)
    for name, gradient in gradients(model, packed).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("tower", ["student", "teacher"])
def test_attention_through_padding_equals_the_grouped_form(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does in float32."""
    model, texts = (tiny_student(), STUDENT_TEXTS) if tower == "student" else (tiny_clip().text_model, CLIP_TEXTS)
    tokens = PackedTokens.from_lists(texts)
    model.double()
    reference = model.encode_packed(tokens)
    expected = gradients(model, reference)
    monkeypatch.setattr(f"{type(model).__module__}.attention_form", lambda *_, **__: "padded")
    found = model.encode_packed(tokens)
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-11)
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_clip_text_packed_equals_padded_reference_with_gradients() -> None:
    model = tiny_clip().text_model.double()
    packed = model.encode_packed(PackedTokens.from_lists(CLIP_TEXTS))
    ends = [len(text) - 1 for text in CLIP_TEXTS]
    reference = slow_clip_text(model, padded(CLIP_TEXTS, filler=0)[0], ends)
    torch.testing.assert_close(packed, reference, rtol=0, atol=1e-11)
    expected = gradients(model, reference)
    for name, gradient in gradients(model, packed).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_vision_encode_equals_slow_reference_with_gradients() -> None:
    model = tiny_clip().vision_model.double()
    pixels = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(3)).double()
    table = model.embeddings
    patches = [pixels[:, :, row : row + 4, column : column + 4] for row in (0, 4) for column in (0, 4)]
    kernel = table.patch_embedding.weight.flatten(1)  # 9 pixels hold two patches of 4 and a rest of 1
    x = torch.stack([table.class_embedding.expand(3, -1)] + [part.flatten(1) @ kernel.T for part in patches], 1)
    x = slow_norm(model.pre_layernorm, x + table.position_embedding.weight)
    for block in model.layers:
        x = x + slow_attention(block.attention, slow_norm(block.norm1, x), torch.ones(3, 5, 5).bool())
        x = x + slow_mlp(block.mlp, slow_norm(block.norm2, x), quick=True)
    reference = slow_norm(model.post_layernorm, x[:, 0])
    encoded = model.encode(pixels)
    torch.testing.assert_close(encoded, reference, rtol=0, atol=1e-11)
    expected = gradients(model, reference)
    for name, gradient in gradients(model, encoded).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_end_of_text_is_highest_id_for_the_legacy_eos_and_first_eos_otherwise() -> None:
    # The highest id, 36, stands at column 3; the first 20 at column 1.
    text = [35, 20, 20, 36, 20, 4]
    for eos, column in ((2, 3), (20, 1)):
        model = CLIPTextModel(CLIPTextConfig(**{**CLIP_TEXT_FIELDS, "eos_token_id": eos}))
        perturb(model)
        found = model.encode_packed(PackedTokens.from_lists([[35, 36, 20], text]))
        reference = slow_clip_text(model, torch.tensor([text]), [column])
        torch.testing.assert_close(found[1:], reference, rtol=0, atol=1e-5)


def test_padding_tokens_without_a_mask_keep_the_padding_position() -> None:
    model = tiny_student().double()
    ids, _ = padded(STUDENT_TEXTS[:2], filler=1)
    real = (ids != 1).long()
    table = model.embeddings
    x = table.word_embeddings.weight[ids] + table.token_type_embeddings.weight[0]
    x = slow_norm(table.norm, x + table.position_embeddings.weight[real.cumsum(1) * real + 1])
    for block in model.layers:
        x = slow_norm(block.norm1, x + slow_attention(block.attention, x, torch.ones(2, 7, 7).bool()))
        x = slow_norm(block.norm2, x + slow_mlp(block.mlp, x, quick=False))
    reference = model.transformation(slow_norm(model.pre_LN, x)[:, 0])
    torch.testing.assert_close(model.encode_packed(pack_padded(ids)), reference, rtol=0, atol=1e-11)


def test_longest_text_uses_the_last_position() -> None:
    model = tiny_student()
    ids, mask = padded([[0] + [5] * 10 + [2]], filler=1)  # 12 tokens: positions 2 to 13 of 14
    reference = slow_student(model, ids, mask)
    torch.testing.assert_close(model.encode_packed(pack_padded(ids, mask)), reference, rtol=0, atol=1e-5)


def test_too_long_text_names_both_lengths() -> None:
    with pytest.raises(ValueError, match="13 tokens, this tower takes 12"):
        tiny_student().encode_packed(PackedTokens.from_lists([[0] + [5] * 12]))
    with pytest.raises(ValueError, match="15 tokens, this tower takes 14"):
        tiny_clip().text_model.encode_packed(PackedTokens.from_lists([[35] * 15]))


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 9\), expected \(B, 3, 9, 9\)"):
        tiny_clip().encode_image(torch.zeros(2, 3, 8, 9))


def test_bf16_autocast_stays_near_float32() -> None:
    student, clip = tiny_student(), tiny_clip()
    pixels = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    exact = [
        student.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS)),
        clip.text_model.encode_packed(PackedTokens.from_lists(CLIP_TEXTS)),
        clip.vision_model.encode(pixels),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = [
            student.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS)),
            clip.text_model.encode_packed(PackedTokens.from_lists(CLIP_TEXTS)),
            clip.vision_model.encode(pixels),
        ]
    for near, value in zip(rough, exact, strict=True):
        assert (near.float() - value).norm() < 0.03 * value.norm()
    rough[0].float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())

"""Towers, weight files and hand-off on tiny models, against slow references and a stored golden."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPTextModel,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    assemble_altclip,
    build_clip,
    build_text_student,
    load_clip_text,
    load_model,
    pack_padded,
)
from altclip_train.types import PackedTokens

GOLDEN = Path(__file__).parent / "goldens" / "models.json"
PRESETS = Path(__file__).parents[2] / "configs" / "model"
TEXT_FIELDS: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 14,
}
CLIP_TEXT_FIELDS: dict[str, Any] = {
    **TEXT_FIELDS,
    "num_attention_heads": 2,
    "hidden_size": 10,
    "eos_token_id": 36,
}
VISION_FIELDS: dict[str, Any] = {
    "image_size": 9,
    "patch_size": 4,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 15,
}
STUDENT_TEXTS = [[0, 7, 9, 2], [0, 30, 31, 32, 33, 34, 2], [0, 2], [0, 8, 9, 2], [0, 5, 2]]
CLIP_TEXTS = [[35, 7, 9, 36], [35, 30, 31, 32, 33, 34, 36], [35, 36], [35, 8, 9, 36], [35, 5, 36]]


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter off its initial value, so that no norm, bias or row is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def tiny_student(project_dim: int = 10) -> AltCLIPTextModel:
    model = build_text_student(student=None, project_dim=project_dim, **TEXT_FIELDS)
    perturb(model)
    return model


def tiny_clip(seed: int = 1) -> CLIPModel:
    model = build_clip(vision=VISION_FIELDS, text=CLIP_TEXT_FIELDS, projection_dim=6, logit_scale_init_value=2.0)
    perturb(model, seed)
    return model


def padded(texts: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    """(B, L) ids and mask."""
    length = max(map(len, texts))
    ids = torch.tensor([text + [filler] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return ids, mask


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
    weights = torch.arange(1, features.numel() + 1, dtype=features.dtype).view_as(features).sin()
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


def test_padded_interface_equals_packed_one() -> None:
    clip = tiny_clip().eval()
    model = AltCLIPModel(
        AltCLIPConfig(
            text_config=tiny_student().config,
            vision_config=AltCLIPVisionConfig(**VISION_FIELDS),
            projection_dim=6,
        )
    ).eval()
    for either, texts, filler in ((model, STUDENT_TEXTS, 1), (clip, CLIP_TEXTS, 36)):
        ids, mask = padded(texts, filler)
        packed = either.encode_text(PackedTokens.from_lists(texts))
        torch.testing.assert_close(either.get_text_features(ids, mask), packed, rtol=0, atol=0)


def test_left_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="pad texts on the right"):
        pack_padded(torch.ones(2, 3).long(), torch.tensor([[1, 1, 1], [0, 1, 1]]))


def test_forward_gives_scaled_cosines_and_the_symmetric_loss() -> None:
    model = tiny_clip()
    ids, mask = padded(CLIP_TEXTS[:3], filler=0)
    pixels = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    output = model(ids, pixels, mask, return_loss=True)
    texts, images = model.get_text_features(ids, mask), model.get_image_features(pixels)
    cosine = torch.stack([torch.stack([torch.cosine_similarity(t, i, dim=0) for i in images]) for t in texts])
    logits = cosine * model.logit_scale.exp()
    torch.testing.assert_close(output.logits_per_text, logits)
    torch.testing.assert_close(output.logits_per_image, logits.T)
    diagonal = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(output.loss, diagonal)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernel needs CUDA")
def test_variable_length_kernel_equals_the_grouped_form() -> None:
    wide = {**TEXT_FIELDS, "hidden_size": 48}
    student = build_text_student(student=None, project_dim=10, **wide)
    teacher = CLIPTextModel(CLIPTextConfig(**{**wide, "eos_token_id": 36}))
    for model, texts in ((student, STUDENT_TEXTS), (teacher, CLIP_TEXTS)):
        perturb(model)
        tokens = PackedTokens.from_lists(texts)
        reference = model.encode_packed(tokens)
        expected = gradients(model, reference)
        model.cuda()
        moved = PackedTokens(tokens.input_ids.cuda(), tokens.cumulative_lengths.cuda(), tokens.max_length)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            features = model.encode_packed(moved)
        assert (features.float().cpu() - reference).norm() < 0.03 * reference.norm()
        found = gradients(model, features.float().cpu())
        for name, gradient in found.items():
            assert (gradient.cpu() - expected[name]).norm() < 0.06 * expected[name].norm() + 1e-3, name


def test_paper_model_has_the_published_parameter_count() -> None:
    config = AltCLIPConfig(
        vision_config=AltCLIPVisionConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            patch_size=14,
        )
    )
    with torch.device("meta"):
        model = AltCLIPModel(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 864_186_113


@pytest.mark.parametrize(
    ("preset", "clip_parameters", "student_parameters"),
    [
        ("starter", 6_930_433, 4_517_632),
        ("vitb32_xlmr_base", 151_277_313, 277_848_320),  # openai/clip-vit-base-patch32; XLM-R base and a head
        (
            "altclip_vitl14_xlmr_large",
            427_616_513,
            559_630_080,
        ),  # openai/clip-vit-large-patch14; 558,840,832 + head
    ],
)
def test_preset_builds_both_stages_with_the_known_size(
    preset: str, clip_parameters: int, student_parameters: int
) -> None:
    fields: Any = OmegaConf.to_container(OmegaConf.load(PRESETS / f"{preset}.yaml"))
    joint = {name: fields[name] for name in ("projection_dim", "logit_scale_init_value")}
    assert fields.keys() == {"image", "text", "teacher_text", *joint}
    with torch.device("meta"):
        clip = build_clip(vision=fields["image"], text=fields["teacher_text"], **joint)
        width = clip.config.text_config.hidden_size
        student = build_text_student(student=None, project_dim=width, **fields["text"])
    assert sum(parameter.numel() for parameter in clip.parameters()) == clip_parameters
    assert sum(parameter.numel() for parameter in student.parameters()) == student_parameters


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (
            AltCLIPTextConfig,
            {"num_attention_heads": 5},
            "hidden_size=12 is not a multiple of num_attention_heads=5",
        ),
        (AltCLIPTextConfig, {"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is unknown"),
        (AltCLIPTextConfig, {"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1.5 must lie in \[0, 1\)"),
        (AltCLIPTextConfig, {"vocab_size": 0}, "vocab_size=0 must be an integer of at least 1"),
        (AltCLIPTextConfig, {"layer_norm_eps": "1e-5"}, "layer_norm_eps='1e-5' must be a number"),
        (AltCLIPTextConfig, {"pad_token_id": 37}, "pad_token_id=37 must be an integer in"),
        (AltCLIPTextConfig, {"max_position_embeddings": 2}, "leaves no position"),
        (AltCLIPTextConfig, {"hiden_size": 12}, "has no field 'hiden_size': did you mean hidden_size?"),
        (CLIPTextConfig, {"eos_token_id": 37}, "eos_token_id=37 must be an integer in"),
        (
            AltCLIPVisionConfig,
            {"hidden_size": 8, "patch_size": 300, "num_attention_heads": 2},
            "smaller than patch",
        ),
    ],
)
def test_config_error_names_field_and_value(config: Any, fields: dict[str, Any], message: str) -> None:
    start = {} if config is AltCLIPVisionConfig else TEXT_FIELDS
    with pytest.raises(ValueError, match=message):
        config.from_fields({"eos_token_id": 36, **start, **fields} if start else fields)


def test_config_survives_its_file_and_ignores_foreign_keys(tmp_path: Path) -> None:
    config = AltCLIPConfig(
        text_config=AltCLIPTextConfig(**TEXT_FIELDS), vision_config=AltCLIPVisionConfig(**VISION_FIELDS)
    )
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "altclip"
    assert content["text_config"]["model_type"] == "altclip_text_model"
    content["direct_kd"] = False
    content["text_config"] |= {"torch_dtype": "float32", "transformers_version": "4.30.0", "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert AltCLIPConfig.from_pretrained(tmp_path) == config


def test_relative_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="position_embedding_type is 'relative_key'"):
        AltCLIPTextConfig.from_dict({**TEXT_FIELDS, "position_embedding_type": "relative_key"})


def test_too_long_text_names_both_lengths() -> None:
    with pytest.raises(ValueError, match="13 tokens, this tower takes 12"):
        tiny_student().encode_packed(PackedTokens.from_lists([[0] + [5] * 12]))
    with pytest.raises(ValueError, match="15 tokens, this tower takes 14"):
        tiny_clip().text_model.encode_packed(PackedTokens.from_lists([[35] * 15]))


def test_longest_text_uses_the_last_position() -> None:
    model = tiny_student()
    ids, mask = padded([[0] + [5] * 10 + [2]], filler=1)  # 12 tokens: positions 2 to 13 of 14
    reference = slow_student(model, ids, mask)
    torch.testing.assert_close(model.encode_packed(pack_padded(ids, mask)), reference, rtol=0, atol=1e-5)


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 9\), expected \(B, 3, 9, 9\)"):
        tiny_clip().encode_image(torch.zeros(2, 3, 8, 9))


def test_assembled_model_keeps_clip_and_student_bit_equal(tmp_path: Path) -> None:
    clip, student = tiny_clip(), tiny_student(project_dim=10)
    clip.save_pretrained(tmp_path)
    tokens = PackedTokens.from_lists(STUDENT_TEXTS)
    before = student.encode_packed(tokens)
    model = assemble_altclip(tmp_path, student)
    assert model.text_model is student
    assert torch.equal(model.text_model.encode_packed(tokens), before)
    assert torch.equal(model.logit_scale, clip.logit_scale)
    for name in ("vision_model", "visual_projection", "text_projection"):
        ours, theirs = model.get_submodule(name).state_dict(), clip.get_submodule(name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.save_pretrained(tmp_path / "altclip")
    loaded = load_model(tmp_path / "altclip")
    assert torch.equal(loaded.encode_text(tokens), model.encode_text(tokens))


def test_assembling_with_another_width_names_both_and_the_key(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"10 wide, but the student projects to 11.*project_dim=10"):
        assemble_altclip(tmp_path, tiny_student(project_dim=11))


def test_clip_text_tower_is_loaded_alone(tmp_path: Path) -> None:
    clip = tiny_clip().eval()
    clip.save_pretrained(tmp_path)
    teacher = load_clip_text(tmp_path)
    tokens = PackedTokens.from_lists(CLIP_TEXTS)
    assert torch.equal(teacher.encode_packed(tokens), clip.text_model.encode_packed(tokens))
    assert not teacher.training


def test_student_takes_the_text_tower_of_an_altclip(tmp_path: Path) -> None:
    clip, student = tiny_clip(), tiny_student(project_dim=10)
    clip.save_pretrained(tmp_path / "clip")
    assemble_altclip(tmp_path / "clip", student).save_pretrained(tmp_path / "altclip")
    again = build_text_student(student=tmp_path / "altclip", project_dim=10, hidden_dropout_prob=0.25)
    assert again.config.hidden_dropout_prob == 0.25
    assert again.training
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="projects to 10, the teacher's width is 11"):
        build_text_student(student=tmp_path / "altclip", project_dim=11)


def test_student_takes_an_xlmr_and_gets_a_fresh_head(tmp_path: Path) -> None:
    source = tiny_student()
    source.config.hidden_dropout_prob = 0.1
    config = {**source.config.to_dict(), "model_type": "xlm-roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = AltCLIPVisionConfig(**VISION_FIELDS)
    whole = AltCLIPModel(AltCLIPConfig(text_config=source.config, vision_config=vision), text_model=source)
    whole.save_pretrained(tmp_path / "whole")
    prefix = "text_model.roberta."
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    encoder = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    encoder["pooler.dense.weight"] = torch.zeros(12, 12)
    save_file(encoder, tmp_path / "model.safetensors")
    student = build_text_student(student=tmp_path, project_dim=13)
    assert student.config.hidden_dropout_prob == 0.0
    for name, tensor in source.state_dict().items():
        if not name.startswith(("pre_LN", "transformation")):
            assert torch.equal(student.state_dict()[name], tensor), name
    assert student.transformation.weight.shape == (13, 12)
    assert 0.01 < student.transformation.weight.std() < 0.03
    assert torch.equal(student.pre_LN.weight, torch.ones(12))


def test_random_students_have_no_dropout_unless_asked() -> None:
    assert tiny_student().config.hidden_dropout_prob == 0.0
    asked = build_text_student(student=None, project_dim=5, hidden_dropout_prob=0.5, **TEXT_FIELDS)
    tokens = PackedTokens.from_lists(STUDENT_TEXTS)
    assert not torch.equal(asked.encode_packed(tokens), asked.encode_packed(tokens))
    asked.eval()
    assert torch.equal(asked.encode_packed(tokens), asked.encode_packed(tokens))


def test_initialisation_has_the_published_spread() -> None:
    model = build_clip(
        vision={
            "image_size": 64,
            "patch_size": 8,
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        text={"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128},
        projection_dim=48,
        logit_scale_init_value=2.6592,
    )
    block = model.text_model.layers[0]
    expected = {
        block.attention.qkv.weight: 64**-0.5 * 6**-0.5,
        block.attention.out.weight: 64**-0.5,
        block.mlp.fc1.weight: 128**-0.5,
        block.mlp.fc2.weight: 64**-0.5 * 6**-0.5,
        model.text_model.embeddings.token_embedding.weight: 0.02,
        model.vision_model.embeddings.patch_embedding.weight: 0.02,
        model.vision_model.embeddings.position_embedding.weight: 0.02,
        model.visual_projection.weight: 96**-0.5,
        model.text_projection.weight: 64**-0.5,
    }
    for weight, std in expected.items():
        assert abs(weight.std().item() / std - 1) < 0.08
    assert torch.equal(block.attention.qkv.bias, torch.zeros(192))
    assert model.logit_scale.shape == ()
    assert model.logit_scale.item() == pytest.approx(2.6592)


class Draws(TorchDispatchMode):
    """Counts the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
            self.count += result.numel()
        return result


@pytest.mark.parametrize("kind", ["altclip", "clip"])
def test_every_weight_is_drawn_once_or_set(kind: str) -> None:
    def build() -> AltCLIPModel | CLIPModel:
        vision = AltCLIPVisionConfig(**VISION_FIELDS)
        if kind == "altclip":
            return AltCLIPModel(AltCLIPConfig(text_config=AltCLIPTextConfig(**TEXT_FIELDS), vision_config=vision))
        return CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**CLIP_TEXT_FIELDS), vision_config=vision))

    torch.use_deterministic_algorithms(True)  # fills memory that nobody has written with NaN
    try:
        with Draws() as draws:
            model = build()
    finally:
        torch.use_deterministic_algorithms(False)
    drawn = [weight for name, weight in model.named_parameters() if weight.ndim > 1 or name.endswith("class_embedding")]
    assert draws.count == sum(weight.numel() for weight in drawn)
    for name, weight in model.named_parameters():
        assert weight.isfinite().all(), name
        assert name.endswith((".bias", "logit_scale")) or weight.any(), name
    with Draws() as draws, torch.device("meta"):
        assert all(weight.is_meta for weight in build().parameters())


def test_openai_configs_with_overruling_dicts_are_read() -> None:
    content = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 512, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        "vision_config": None,
        "vision_config_dict": {"patch_size": 14},
    }
    config = CLIPConfig.from_dict(content)
    assert config.text_config.hidden_size == 768
    assert config.vision_config == CLIPVisionConfig(patch_size=14)


def formula_tensor(name: str, shape: list[int]) -> Tensor:
    """Weights that need no file: a sine whose phase is the sum of the letters of the published name."""
    phase = sum(map(ord, name)) % 97
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 0.25 * torch.sin(0.7 * steps + phase) + (1.0 if name.lower().endswith("norm.weight") else 0.0)
    return values.float().reshape(shape)


@pytest.mark.parametrize("case", ["altclip", "clip_first_eos", "clip_legacy_eos"])
def test_features_equal_the_stored_golden(case: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())["cases"][case]
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
    tensors = {name: formula_tensor(name, shape) for name, shape in golden["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    pixels = formula_tensor("pixel_values", golden["pixel_shape"])
    with torch.no_grad():
        output = model(torch.tensor(golden["input_ids"]), pixels, torch.tensor(golden["attention_mask"]))
        text = model.get_text_features(torch.tensor(golden["input_ids"]), torch.tensor(golden["attention_mask"]))
        image = model.get_image_features(pixels)
    for name, found in (("text", text), ("image", image), ("logits_per_image", output.logits_per_image)):
        torch.testing.assert_close(found, torch.tensor(golden[name]), rtol=0, atol=2e-5, msg=name)

"""Sizes of the published models and presets; what random weights are drawn from, and that each is drawn once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    build_clip,
    build_text_student,
)
from tests.tiny_models import CLIP_TEXT_FIELDS, TEXT_FIELDS, VISION_FIELDS

PRESETS = Path(__file__).parents[2] / "configs" / "model"


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

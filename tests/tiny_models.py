"""Tiny random models whose widths all differ, and texts for them; a tiny AltCLIP as a whole directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextModel,
    CLIPModel,
    build_clip,
    build_text_student,
)
from altclip_train.processing import AltCLIPProcessor, CLIPImageProcessor, ImageTransform, XLMRTokenizer

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


def perturb(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Move every parameter off its initial value, so that no norm, bias or row is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def tiny_student(project_dim: int = 10) -> AltCLIPTextModel:
    model = build_text_student(student=None, project_dim=project_dim, **TEXT_FIELDS)
    perturb(model)
    return model


def tiny_clip(seed: int = 1) -> CLIPModel:
    model = build_clip(vision=VISION_FIELDS, text=CLIP_TEXT_FIELDS, projection_dim=6, logit_scale_init_value=2.0)
    perturb(model, seed)
    return model


def tiny_config(text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None) -> AltCLIPConfig:
    return AltCLIPConfig(
        text_config={**TEXT_FIELDS, "project_dim": 10, **(text or {})},
        vision_config={**VISION_FIELDS, **(vision or {})},
        projection_dim=6,
    )


def tiny_altclip(text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None) -> AltCLIPModel:
    model = AltCLIPModel(tiny_config(text, vision))
    perturb(model, 4)
    return model.eval()


def save_altclip(directory: Path, tokenizer: XLMRTokenizer, *, spare_rows: int = 0) -> Path:
    """A whole model directory: a perturbed AltCLIP, its tokenizer, and a transform to 32 pixels."""
    model = tiny_altclip(
        text={"vocab_size": len(tokenizer) + spare_rows, "max_position_embeddings": 100},
        vision={"image_size": 32, "patch_size": 16},
    )
    model.tokenizer_sha256 = tokenizer.fingerprint
    model.save_pretrained(directory)
    transform = ImageTransform(size=32, crop_size=32)
    AltCLIPProcessor(CLIPImageProcessor(transform), tokenizer).save_pretrained(directory)
    return directory


def padded(texts: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    """(B, L) ids and mask."""
    length = max(map(len, texts))
    ids = torch.tensor([text + [filler] * (length - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return ids, mask

"""Tiny models of `transformers` with every parameter moved off its initial value, and inputs for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny_models

transformers = pytest.importorskip("transformers")

# States of size 1 to 5: far beyond, 1e-5 is less than what float32 rounds.
perturb = partial(tiny_models.perturb, scale=0.1)
VISION: dict[str, Any] = {
    "image_size": 18,
    "patch_size": 6,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}
XLMR: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "max_position_embeddings": 17,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "type_vocab_size": 1,
}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 59,
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 36,
    "max_position_embeddings": 13,
    "pad_token_id": 1,
    "bos_token_id": 57,
}
STUDENT_TEXTS = [[0, 7, 9, 2], [0, 50, 51, 52, 53, 54, 55, 2], [0, 2], [0, 8, 9, 2], [0, 5, 2]]
# The first end of text, 40, and the highest id, 58, stand apart, so that the two pooling rules differ.
CLIP_TEXTS = [
    [57, 40, 9, 58],
    [57, 50, 51, 40, 53, 40, 55, 58],
    [57, 40, 58],
    [57, 8, 40, 58],
    [57, 5, 40, 6, 58],
]
EOS_RULES = [2, 40]


def reference_altclip() -> Any:
    config = transformers.AltCLIPConfig(
        text_config={**XLMR, "project_dim": 20}, vision_config=VISION, projection_dim=16
    )
    torch.manual_seed(0)
    model = transformers.AltCLIPModel(config).eval()
    perturb(model, seed=1)
    return model


def reference_clip(eos_token_id: int) -> Any:
    config = transformers.CLIPConfig(
        text_config={**CLIP_TEXT, "eos_token_id": eos_token_id, "projection_dim": 16},
        vision_config={**VISION, "projection_dim": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    perturb(model, seed=2)
    return model


def padded(texts: list[list[int]], filler: int) -> dict[str, Tensor]:
    length = max(map(len, texts))
    return {
        "input_ids": torch.tensor([text + [filler] * (length - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts]),
    }


def pictures() -> Tensor:
    return torch.randn(4, 3, 18, 18, generator=torch.Generator().manual_seed(3))

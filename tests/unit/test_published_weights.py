"""The numbers of the documentation, where the published weights are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from altclip_train.models import AltCLIPModel, AltCLIPVisionModel
from altclip_train.processing import AltCLIPProcessor


def published() -> tuple[Path, Path]:
    given = [os.environ.get(name) for name in ("ALTCLIP_WEIGHTS", "ALTCLIP_CATS")]
    if not all(given):
        pytest.skip(
            "set ALTCLIP_WEIGHTS to a directory of the published AltCLIP and ALTCLIP_CATS to the file of "
            "COCO val2017 000000039769"
        )
    return Path(str(given[0])), Path(str(given[1]))


@torch.no_grad()
def test_published_weights_tell_a_cat_from_a_dog() -> None:
    weights, cats = published()
    model, processor = AltCLIPModel.from_pretrained(weights), AltCLIPProcessor.from_pretrained(weights)
    image = Image.open(cats)
    inputs = processor(text=["一张猫的照片", "一张狗的照片"], images=image, return_tensors="pt", padding=True)
    found = model(**inputs).logits_per_image.softmax(dim=1)
    torch.testing.assert_close(found, torch.tensor([[0.99942, 0.00057805]]), rtol=0, atol=5e-3)


@torch.no_grad()
def test_published_weights_at_180_pixels() -> None:
    weights, cats = published()
    size: dict[str, Any] = {"size": {"shortest_edge": 180}, "crop_size": {"height": 180, "width": 180}}
    processor = AltCLIPProcessor.from_pretrained(weights, **size)
    pixels = processor(images=Image.open(cats), return_tensors="pt")["pixel_values"]
    state = AltCLIPVisionModel.from_pretrained(weights)(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert state.shape == (1, 145, 1024)
    expected = [[-0.3589, -0.5939, 0.3534], [0.4346, 0.1647, 0.7071], [1.1404, -0.4716, 0.1664]]
    torch.testing.assert_close(state[0, :3, :3], torch.tensor(expected), rtol=0, atol=1e-4)

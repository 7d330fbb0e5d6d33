"""Towers saved alone cross over to `transformers` and back: all tensors, the kind of model, and every output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from altclip_train.models import AltCLIPTextModel, AltCLIPVisionModel, CLIPModel, CLIPTextModel
from altclip_train.models.pretrained import Pretrained
from tests.parity.references import (
    CLIP_TEXTS,
    STUDENT_TEXTS,
    padded,
    pictures,
    reference_altclip,
    reference_clip,
)

transformers = pytest.importorskip("transformers", minversion="5.23")
pytestmark = pytest.mark.parity

TOLERANCE = 1e-5


class Tower(NamedTuple):
    """A tower of `transformers`, our class for it, and inputs."""

    reference: Any
    ours: type[Pretrained]
    inputs: dict[str, torch.Tensor]


def tower(name: str) -> Tower:
    students, texts, pixels = padded(STUDENT_TEXTS, 1), padded(CLIP_TEXTS, 58), {"pixel_values": pictures()}
    return {
        "AltCLIPTextModel": lambda: Tower(reference_altclip().text_model, AltCLIPTextModel, students),
        "AltCLIPVisionModel": lambda: Tower(reference_altclip().vision_model, AltCLIPVisionModel, pixels),
        "CLIPTextModel": lambda: Tower(reference_clip(40).text_model, CLIPTextModel, texts),
        "CLIPVisionModel": lambda: Tower(reference_clip(40).vision_model, AltCLIPVisionModel, pixels),
    }[name]()


NAMES = ["AltCLIPTextModel", "AltCLIPVisionModel", "CLIPTextModel", "CLIPVisionModel"]


@torch.no_grad()
def assert_same_outputs(found: Any, expected: Any, inputs: dict[str, torch.Tensor]) -> None:
    ours, theirs = found.eval()(**inputs), expected.eval()(**inputs)
    assert theirs.pooler_output.abs().max() > 0.1
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_theirs_becomes_ours(name: str, tmp_path: Path) -> None:
    reference, ours, inputs = tower(name)
    reference.save_pretrained(tmp_path)
    assert_same_outputs(ours.from_pretrained(tmp_path), reference, inputs)


@pytest.mark.parametrize("name", NAMES)
def test_ours_becomes_theirs_with_the_same_names_and_kind(name: str, tmp_path: Path) -> None:
    reference, ours, inputs = tower(name)
    reference.save_pretrained(tmp_path / "theirs")
    model = ours.from_pretrained(tmp_path / "theirs")
    if name == "CLIPVisionModel":  # ours has one class for both; a whole CLIP's tower keeps the kind
        reference_clip(40).save_pretrained(tmp_path / "whole")
        model = CLIPModel.from_pretrained(tmp_path / "whole").vision_model
    model.save_pretrained(tmp_path / "ours")
    loaded, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_outputs(model, loaded, inputs)
    assert_same_outputs(loaded, reference, inputs)
    found, expected = (load_file(tmp_path / one / "model.safetensors") for one in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    found, expected = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("ours", "theirs"))
    assert found["architectures"] == expected["architectures"] == [name]
    assert {key: value for key, value in expected.items() if key in found} == found


@pytest.mark.parametrize("name", ["CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"])
def test_towers_with_their_projection_are_read_without_it(name: str, tmp_path: Path) -> None:
    part = "text_model" if "Text" in name else "vision_model"
    _, ours, inputs = tower(name.removesuffix("WithProjection"))
    reference_clip(40).save_pretrained(tmp_path / "whole")
    reference = getattr(transformers, name).from_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "tower")
    assert_same_outputs(ours.from_pretrained(tmp_path / "tower"), getattr(reference, part), inputs)

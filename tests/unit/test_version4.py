"""Directories as version 4 of `transformers` saved them: pickles, buffers among the weights, keys that went since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from altclip_train.models import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CLIPModel,
    CLIPTextModel,
    build_text_student,
    load_clip_text,
    load_model,
)
from tests.tiny_models import tiny_altclip, tiny_clip
from tests.weight_spellings import Tensors, assert_same, saved, write_json

# Of every configuration of those days; none of them shapes a model.
FOREIGN: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bos_token_id": 0,
    "chunk_size_feed_forward": 0,
    "dropout": 0.0,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "pooler_fn": "cls",
    "position_embedding_type": "absolute",
    "return_dict": True,
    "torch_dtype": "float32",
    "transformers_version": "4.23.1",
    "use_cache": True,
}
BUFFERS = {
    "text_model.embeddings.position_ids": torch.arange(14)[None],
    "text_model.roberta.embeddings.position_ids": torch.arange(14)[None],
    "text_model.roberta.embeddings.token_type_ids": torch.zeros(1, 14, dtype=torch.long),
    "vision_model.embeddings.position_ids": torch.arange(5)[None],
}


def version4(model: AltCLIPModel | CLIPModel, folder: Path) -> Tensors:
    """The model's config.json as version 4 had it, and its tensors."""
    tensors = saved(model, folder)
    content = json.loads((folder / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        # What counts stands in the one with `_dict`.
        content[f"{tower}_dict"] = content[tower]
        content[tower] = {**FOREIGN, **content[tower], "hidden_size": 512}
    write_json(folder / "config.json", {**FOREIGN, **content, "direct_kd": False})
    buffers = {name: tensor for name, tensor in BUFFERS.items() if f"{name.rpartition('.')[0]}." in "".join(tensors)}
    return {**tensors, **buffers}


@pytest.fixture(params=["clip", "altclip"])
def model(request: pytest.FixtureRequest) -> AltCLIPModel | CLIPModel:
    return (tiny_clip() if request.param == "clip" else tiny_altclip()).eval()


def test_whole_model_is_read(model: AltCLIPModel | CLIPModel, tmp_path: Path) -> None:
    tensors = version4(model, tmp_path)
    assert sum(name.endswith("position_ids") for name in tensors) == 2
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert_same(load_model(tmp_path), model)


def test_parts_are_read_out_of_a_whole_model(tmp_path: Path) -> None:
    clip, altclip = tiny_clip().eval(), tiny_altclip()
    torch.save(version4(clip, tmp_path / "clip"), tmp_path / "clip" / "pytorch_model.bin")
    torch.save(version4(altclip, tmp_path / "altclip"), tmp_path / "altclip" / "pytorch_model.bin")
    for found, expected in (
        (load_clip_text(tmp_path / "clip"), clip.text_model),
        (AltCLIPVisionModel.from_pretrained(tmp_path / "clip"), clip.vision_model),
        (AltCLIPTextModel.from_pretrained(tmp_path / "altclip"), altclip.text_model),
        (build_text_student(student=tmp_path / "altclip", project_dim=10), altclip.text_model),
    ):
        assert_same_tensors(found, expected)


@pytest.mark.parametrize(
    ("tower", "kind", "prefix"),
    [
        ("clip text", "clip_text_model", "text_model."),
        ("clip vision", "clip_vision_model", "vision_model."),
        ("altclip text", "altclip_text_model", ""),
        ("altclip vision", "altclip_vision_model", "vision_model."),
    ],
)
def test_tower_alone_is_read(tower: str, kind: str, prefix: str, tmp_path: Path) -> None:
    """Version 4 left the prefix of its whole model before a CLIP's towers, and buffers behind it."""
    whole, part = tower.split()
    model = tiny_clip() if whole == "clip" else tiny_altclip()
    expected: Any = getattr(model, f"{part}_model")
    tensors = {name: t for name, t in version4(model, tmp_path).items() if name.startswith(f"{part}_model.")}
    torch.save(
        {prefix + name.removeprefix(f"{part}_model."): t for name, t in tensors.items()}, tmp_path / "pytorch_model.bin"
    )
    write_json(tmp_path / "config.json", {**FOREIGN, **expected.config.to_dict(), "model_type": kind})
    classes = {"clip text": CLIPTextModel, "altclip text": AltCLIPTextModel}
    assert_same_tensors(classes.get(tower, AltCLIPVisionModel).from_pretrained(tmp_path), expected)


def assert_same_tensors(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

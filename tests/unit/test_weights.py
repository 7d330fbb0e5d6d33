"""Weights that do not fit are listed in one error; files and models that are missing or of another kind are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from altclip_train.models import (
    AltCLIPConfig,
    CLIPConfig,
    CLIPTextConfig,
    build_text_student,
    load_clip_text,
    load_model,
)
from altclip_train.processing import AltCLIPProcessor
from tests.tiny_models import CLIP_TEXT_FIELDS, tiny_clip
from tests.weight_spellings import legacy_clip, openai_names, saved


def test_weight_error_lists_every_missing_unexpected_and_misshapen_tensor(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_model.encoder.layers.1.self_attn.q_proj.bias"]
    del tensors["logit_scale"]
    tensors["vision_model.extra.weight"] = torch.zeros(2)
    tensors["text_projection.weight"] = torch.zeros(6, 11)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_model(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: logit_scale",
        "  missing: text_model.encoder.layers.1.self_attn.q_proj.bias",
        "  unexpected: vision_model.extra.weight",
        "  shape of text_projection.weight: found (6, 11), expected (6, 10)",
    ]


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape of"])
def test_each_kind_of_weight_error_alone_is_enough(fault: str, tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if fault == "missing":
        del tensors["text_model.final_layer_norm.bias"]
    elif fault == "unexpected":
        tensors["text_model.encoder.layers.3.layer_norm1.bias"] = torch.zeros(10)
    else:
        tensors["text_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(10, 9)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"config\.json:\n  {fault}[^\n]*$"):
        load_clip_text(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"config\.json is missing, and so is open_clip_config\.json: .*notes\.txt"
    ):
        load_model(tmp_path)
    CLIPConfig(text_config=CLIPTextConfig(**CLIP_TEXT_FIELDS)).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*notes\.txt"):
        load_model(tmp_path)


@pytest.mark.parametrize("read", [load_model, AltCLIPConfig.from_pretrained, AltCLIPProcessor.from_pretrained])
def test_what_is_no_model_directory_says_what_to_give(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a directory: give a model directory, or a hub id"):
        read(tmp_path / "nowhere")
    (tmp_path / "ViT-B-32.pt").touch()
    with pytest.raises(
        FileNotFoundError, match=rf"ViT-B-32\.pt is a file, expected a model directory: give {tmp_path}"
    ):
        read(tmp_path / "ViT-B-32.pt")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"run is a run: give its model directory, .*run/model"):
        read(tmp_path / "run")


def test_two_files_of_openai_leave_a_choice(tmp_path: Path) -> None:
    for name in ("ViT-B-32.pt", "ViT-L-14.pt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"not exactly one \.pt file; it holds ViT-B-32\.pt, ViT-L-14\.pt"):
        load_model(tmp_path)


def test_other_kinds_of_model_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert', expected 'altclip' or 'clip'"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="'bert', expected a whole CLIP"):
        load_clip_text(tmp_path)
    with pytest.raises(ValueError, match="'bert', expected 'xlm-roberta' or 'altclip'"):
        build_text_student(student=tmp_path, project_dim=10)


def test_each_leftover_missing_misshapen_and_mistyped_name_of_open_clip_is_listed_in_one_error(tmp_path: Path) -> None:
    tensors = openai_names(saved(legacy_clip(), tmp_path))
    del tensors["transformer.resblocks.1.attn.in_proj_bias"]
    tensors["visual.attnpool.weight"] = torch.zeros(3)
    tensors["visual.proj"] = torch.zeros(6, 8)
    tensors["ln_final.bias"] = torch.zeros(10, dtype=torch.int32)
    tensors["ln_final.weight"] = torch.zeros(10, dtype=torch.bool)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_model(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: text_model.encoder.layers.1.self_attn.q_proj.bias",
        "  missing: text_model.encoder.layers.1.self_attn.k_proj.bias",
        "  missing: text_model.encoder.layers.1.self_attn.v_proj.bias",
        "  unexpected: visual.attnpool.weight",
        "  shape of visual.proj: found (8, 6), expected (6, 8)",
        "  type of ln_final.weight: found torch.bool, expected a floating-point type",
        "  type of ln_final.bias: found torch.int32, expected a floating-point type",
    ]


def test_the_same_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = saved(tiny_clip(), tmp_path)
    name = "text_model.encoder.layers.0.mlp.fc1.bias"
    save_file({**tensors, name.replace("layers", "layer"): torch.zeros(20)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"same tensor as text_model\.encoder\.layer.*fc1\.bias"):
        load_model(tmp_path)

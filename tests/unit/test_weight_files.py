"""Every file layout and spelling of `transformers` gives the same model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from altclip_train.evaluate import MODEL_FILES
from altclip_train.models import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CLIPModel,
    CLIPTextModel,
    build_text_student,
    load_model,
    weight_files,
)
from tests.tiny_models import tiny_altclip, tiny_clip
from tests.weight_spellings import Tensors, assert_same, saved, write_shards


def pickle_of_old(tensors: Tensors, file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Tensors, Path], None]] = {
    "one safetensors": lambda tensors, folder: save_file(tensors, folder / "model.safetensors"),
    "sharded safetensors": lambda t, folder: write_shards(t, folder, "model.safetensors.index.json", save_file),
    "one pickle": lambda tensors, folder: torch.save(tensors, folder / "pytorch_model.bin"),
    "pickle of old": lambda tensors, folder: pickle_of_old(tensors, folder / "pytorch_model.bin"),
    "sharded pickle": lambda t, folder: write_shards(t, folder, "pytorch_model.bin.index.json", torch.save),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_file_layout_gives_the_same_model(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "WINDOW", 1600)  # bytes: the embeddings are copied in two pieces
    model = tiny_clip()
    WRITERS[layout](saved(model, tmp_path), tmp_path)
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("vision", ["layers", "layer"])
@pytest.mark.parametrize("text", ["layers", "layer"])
@pytest.mark.parametrize("make", [tiny_clip, tiny_altclip])
def test_both_names_of_the_layers_load_in_both_towers(
    make: Callable[[], CLIPModel | AltCLIPModel], text: str, vision: str, tmp_path: Path
) -> None:
    model = make()
    spelled = {}
    for name, tensor in saved(model, tmp_path).items():
        for old in ("encoder.layers.", "encoder.layer."):
            number = text if name.startswith("text_model.") else vision
            if old in name:
                name = name.replace(old, f"encoder.{number}.")
                break
        spelled[name] = tensor
    save_file(spelled, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


STRAY: dict[str, Tensors] = {
    "clip": {
        "text_model.embeddings.position_ids": torch.arange(14)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    },
    "altclip": {
        "text_model.roberta.embeddings.position_ids": torch.arange(14)[None],
        "text_model.roberta.embeddings.token_type_ids": torch.zeros(1, 14).long(),
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    },
}


@pytest.mark.parametrize("make", [tiny_clip, tiny_altclip])
def test_stray_buffers_are_ignored(make: Callable[[], CLIPModel | AltCLIPModel], tmp_path: Path) -> None:
    model = make()
    save_file({**saved(model, tmp_path), **STRAY[model.config.model_type]}, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_dtype_and_device_are_those_asked_for(tmp_path: Path) -> None:
    model = tiny_altclip()
    save_file(saved(model, tmp_path), tmp_path / "model.safetensors")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        loaded = AltCLIPModel.from_pretrained(tmp_path, dtype=dtype, device="cpu")
        assert (loaded.dtype, loaded.device, loaded.training) == (dtype, torch.device("cpu"), False)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor.to(dtype)), name
    away = load_model(tmp_path, dtype=torch.float16, device="meta")
    assert {(tensor.dtype, tensor.is_meta) for tensor in away.state_dict().values()} == {(torch.float16, True)}


def test_tokenizer_fingerprint_is_kept_through_load_and_save(tmp_path: Path) -> None:
    model = tiny_altclip()
    model.save_pretrained(tmp_path / "none")
    assert load_model(tmp_path / "none").tokenizer_sha256 is None
    model.tokenizer_sha256 = "ab" * 32
    model.save_pretrained(tmp_path / "first")
    again = load_model(tmp_path / "first")
    assert again.tokenizer_sha256 == "ab" * 32
    again.save_pretrained(tmp_path / "second")
    assert AltCLIPTextModel.from_pretrained(tmp_path / "second").tokenizer_sha256 == "ab" * 32
    assert build_text_student(student=tmp_path / "second", project_dim=10) is not None


def test_towers_come_out_of_whole_models_and_of_their_own_directories(tmp_path: Path) -> None:
    clip, altclip = tiny_clip(), tiny_altclip()
    clip.save_pretrained(tmp_path / "clip")
    altclip.save_pretrained(tmp_path / "altclip")
    for whole, kind, source in (
        ("clip", CLIPTextModel, clip.text_model),
        ("clip", AltCLIPVisionModel, clip.vision_model),
        ("altclip", AltCLIPTextModel, altclip.text_model),
        ("altclip", AltCLIPVisionModel, altclip.vision_model),
    ):
        tower = kind.from_pretrained(tmp_path / whole)
        alone = tmp_path / f"{whole}_{kind.__name__}"
        tower.save_pretrained(alone)
        for found in (tower, kind.from_pretrained(alone)):
            assert not found.training
            assert found.state_dict().keys() == source.state_dict().keys()
            for name, tensor in source.state_dict().items():
                assert torch.equal(found.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="model_type is 'clip', expected 'altclip_text_model'"):
        AltCLIPTextModel.from_pretrained(tmp_path / "clip")


def test_saved_model_loads_back_bit_equal_with_published_names(tmp_path: Path) -> None:
    model = tiny_clip()
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "text_model.encoder.layers.2.self_attn.k_proj.bias" in names
    assert "vision_model.pre_layrnorm.weight" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(tmp_path)
    assert isinstance(loaded, CLIPModel)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_lone_text_tower_has_the_names_and_the_kind_that_transformers_gives_it(tmp_path: Path) -> None:
    tiny_altclip().text_model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "roberta.encoder.layers.2.attention.self.key.bias" in names
    assert {name.partition(".")[0] for name in names} == {"roberta", "pre_LN", "transformation"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("altclip_text_model", ["AltCLIPTextModel"])


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_others_may_read_what_is_written_as_far_as_the_umask_lets_them(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        tiny_clip().save_pretrained(tmp_path / "new")
        tiny_clip().save_pretrained(tmp_path / "new")  # over the files of before
    finally:
        os.umask(before)
    found = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "new").iterdir()}
    assert found == dict.fromkeys(("config.json", "model.safetensors"), oct(mode))


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    model = tiny_clip()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float()), name


def test_every_kind_of_weights_that_is_read_is_taken_by_the_evaluation() -> None:
    taken = {name for [name] in MODEL_FILES["its weights"]}
    assert set(weight_files.SINGLE) <= taken
    assert {"model.safetensors.index.json", "pytorch_model.bin.index.json"} <= taken

"""CLIPs of open_clip and OpenAI: their names, their configurations, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from altclip_train.models import CLIPConfig, load_model, open_clip, weight_files
from altclip_train.models.spelling import from_openai_name, openai_name, published_names
from altclip_train.models.weight_files import Stored
from altclip_train.models.weights import published_state
from tests.tiny_models import CLIP_TEXTS, padded
from tests.weight_spellings import (
    OPEN_CLIP_CONFIG,
    Tensors,
    assert_same,
    legacy_clip,
    openai_names,
    saved,
    text_module,
    write_json,
)

# Sizes that obey OpenAI's rule: heads are 64 wide.
WIDE_TEXT = {"hidden_size": 64, "intermediate_size": 72, "num_attention_heads": 1, "num_hidden_layers": 3}
WIDE_VISION = {"hidden_size": 128, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize("spelling", [openai_names, lambda tensors: text_module(openai_names(tensors))])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "training state"])
def test_open_clip_directory_gives_the_same_model(
    spelling: Callable[[Tensors], Tensors], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bytes: matrices, also those that lie the other way round, are copied in pieces.
    monkeypatch.setattr(weight_files, "WINDOW", 100 if file.endswith(".safetensors") else 1600)
    model = legacy_clip()
    tensors = spelling(saved(model, tmp_path))
    (tmp_path / "config.json").unlink()
    write_json(tmp_path / "open_clip_config.json", OPEN_CLIP_CONFIG)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)  # as the latest versions store it
    if file == "training state":
        state = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "open_clip_pytorch_model.bin")
    elif file.endswith(".bin"):
        torch.save(tensors, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file)
    assert_same(load_model(tmp_path), model)


def test_openai_names_beside_a_config_give_the_same_model(tmp_path: Path) -> None:
    model = legacy_clip()
    save_file(openai_names(saved(model, tmp_path)), tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_openai_file_without_a_config_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = legacy_clip(WIDE_TEXT, WIDE_VISION)
    tensors = openai_names(saved(model, tmp_path))
    (tmp_path / "config.json").unlink()
    sizes = {"input_resolution": torch.tensor(9), "context_length": torch.tensor(14), "vocab_size": torch.tensor(37)}
    torch.save({**tensors, **sizes}, tmp_path / "ViT.pt")
    with pytest.raises(ValueError, match=r"is none of OpenAI's: put the open_clip_config\.json"):
        load_model(tmp_path)
    monkeypatch.setattr(open_clip, "_OPENAI_TOWERS", {(128, 2)})
    found = load_model(tmp_path)
    assert "read as OpenAI's CLIP, with heads 64 wide and quick_gelu" in caplog.text
    assert found.config.vision_config.image_size == 8  # two whole patches; the ninth pixel left no trace
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    inputs = padded(CLIP_TEXTS, 36)
    with torch.no_grad():
        assert torch.equal(found.get_text_features(*inputs), model.get_text_features(*inputs))


@pytest.mark.parametrize(
    ("width", "layers", "patch", "size", "text_width", "joint"),
    [(768, 12, 32, 224, 512, 512), (768, 12, 16, 224, 512, 512), (1024, 24, 14, 336, 768, 768)],
)
def test_shapes_tell_openai_models(
    width: int, layers: int, patch: int, size: int, text_width: int, joint: int, tmp_path: Path
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((size // patch) ** 2 + 1, width),
        "text_model.embeddings.token_embedding.weight": (49408, text_width),
        "text_model.embeddings.position_embedding.weight": (77, text_width),
        "text_projection.weight": (joint, text_width),
    }
    for tower, depth, wide in (("text_model", 12, text_width), ("vision_model", layers, width)):
        for number in range(depth):
            shapes[f"{tower}.encoder.layers.{number}.mlp.fc1.weight"] = (4 * wide, wide)
            shapes[f"{tower}.encoder.layers.{number}.layer_norm1.weight"] = (wide,)
    tensors = {name: Stored(tmp_path / "ViT.pt", name, shape, torch.half) for name, shape in shapes.items()}
    found = CLIPConfig.from_dict(open_clip.from_openai_shapes(tensors, tmp_path))
    text, vision = found.text_config, found.vision_config
    assert (vision.image_size, vision.patch_size) == (size, patch)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (layers, width // 64)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (text_width, 12, text_width // 64)
    assert (found.projection_dim, text.vocab_size, text.max_position_embeddings) == (joint, 49408, 77)
    assert {text.hidden_act, vision.hidden_act} == {"quick_gelu"}
    assert text.eos_token_id == 2


@pytest.mark.parametrize(
    ("joint", "vision", "text", "heads", "hidden"),
    [
        (1024, {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, (1024, 16, 24), 16, 5120),  # H/14
        (
            1024,
            {"layers": 40, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14},
            (1024, 16, 24),
            16,
            6144,
        ),  # g/14
        (512, {"layers": 12, "width": 768, "patch_size": 32}, (512, 8, 12), 12, 3072),  # B/32
    ],
)
def test_open_clip_config_gives_heads_hidden_widths_and_gelu(
    joint: int, vision: dict[str, Any], text: tuple[int, int, int], heads: int, hidden: int, tmp_path: Path
) -> None:
    width, text_heads, layers = text
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": text_heads, "layers": layers}
    content = {"model_cfg": {"embed_dim": joint, "vision_cfg": {"image_size": 224, **vision}, "text_cfg": text_cfg}}
    found = CLIPConfig.from_dict(open_clip.from_open_clip(content, tmp_path))
    assert (found.vision_config.num_attention_heads, found.vision_config.intermediate_size) == (heads, hidden)
    assert (found.text_config.num_attention_heads, found.text_config.intermediate_size) == (text_heads, 4 * width)
    assert (found.text_config.hidden_act, found.vision_config.hidden_act) == ("gelu", "gelu")
    assert found.projection_dim == joint


def test_every_parameter_has_one_name_of_openai_and_comes_back_from_it() -> None:
    model = legacy_clip()
    published = {ours: published_names(ours, model.towers) for ours in model.state_dict()}
    spelled = {ours: openai_name(ours, model.towers) for ours in published}
    assert len(set(spelled.values())) == len(spelled)
    assert set(spelled.values()) == openai_names(published_state(model, towers=model.towers)).keys()
    for ours, name in spelled.items():
        first = published[ours][0]
        expected = first.replace(".q_proj.", ".in_proj.") if len(published[ours]) == 3 else first
        assert from_openai_name(name) == expected
        if not name.startswith("visual.") and name != "logit_scale":
            assert from_openai_name(f"text.{name}") == expected


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "'xlm-roberta-base' of another library"),
        ("vision_cfg", {"timm_model_name": "convnext"}, "'convnext' of another library"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is a ResNet"),
        ("vision_cfg", {"global_average_pool": True}, r"vision_cfg\.global_average_pool=True is not supported"),
        ("text_cfg", {"pool_type": "last"}, r"text_cfg\.pool_type='last' is not supported"),
        ("text_cfg", {"width": "10"}, "has a wrong one"),
        ("vision_cfg", {"head_width": 0}, "has a wrong one"),
        ("vision_cfg", {"mlp_ratio": math.inf}, "has a wrong one"),
        ("vision_cfg", {"pool_type": "eos"}, r"vision_cfg\.pool_type='eos' is not supported"),
        ("text_cfg", {"pool_type": "tok"}, r"text_cfg\.pool_type='tok' is not supported"),
        ("text_cfg", {"pool_type": "eos"}, r"text_cfg\.pool_type='eos' with eos_id=2 is not supported"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 99}, r"eos_token_id=99 must be an integer in \[0, vocab_size=37\)"),
        ("text_cfg", {"norm_kwargs": {"eps": 1e-6, "bias": False}}, r"text_cfg\.norm_kwargs=.*only eps can be set"),
        ("vision_cfg", {"norm_kwargs": [1e-6]}, r"vision_cfg\.norm_kwargs=.*only eps can be set"),
        ("vision_cfg", {"norm_kwargs": {"eps": "1e-6"}}, "layer_norm_eps='1e-6' must be a number"),
    ],
)
def test_open_clip_models_of_other_kinds_are_refused_by_field(
    part: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(OPEN_CLIP_CONFIG))
    content["model_cfg"][part] |= change
    write_json(tmp_path / "open_clip_config.json", content)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json.*{message}"):
        load_model(tmp_path)


@pytest.mark.parametrize("spelling", [openai_names, lambda tensors: text_module(openai_names(tensors))])
def test_stray_buffers_of_open_clip_are_ignored(spelling: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    model = legacy_clip()
    tensors = spelling({**saved(model, tmp_path)})
    mask = "attn_mask" if "text_projection" in tensors else "text.attn_mask"
    save_file({**tensors, mask: torch.zeros(14, 14)}, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)

"""transformers' weights through our models and out again: the published names, and the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from altclip_train.models import AltCLIPModel, CLIPModel, load_model
from tests.parity.references import (
    CLIP_TEXT,
    CLIP_TEXTS,
    VISION,
    XLMR,
    padded,
    perturb,
    pictures,
    reference_altclip,
    reference_clip,
)
from tests.weight_spellings import openai_names, write_json

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def affine(*modules: str) -> set[str]:
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def clip_blocks(tower: str, layers: int) -> set[str]:
    parts = [f"self_attn.{part}_proj" for part in "qkv"]
    parts += ["self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
    return affine(*(f"{tower}.encoder.layers.{number}.{part}" for number in range(layers) for part in parts))


def vision_and_joint() -> set[str]:
    return {
        "logit_scale",
        "text_projection.weight",
        "visual_projection.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        *affine("vision_model.pre_layrnorm", "vision_model.post_layernorm"),
        *clip_blocks("vision_model", VISION["num_hidden_layers"]),
    }


def published_clip() -> set[str]:
    embeddings = {f"text_model.embeddings.{table}_embedding.weight" for table in ("token", "position")}
    blocks = clip_blocks("text_model", CLIP_TEXT["num_hidden_layers"])
    return vision_and_joint() | embeddings | blocks | affine("text_model.final_layer_norm")


def published_altclip() -> set[str]:
    roberta = "text_model.roberta."
    parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
    parts += ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"]
    parts += ["output.dense", "output.LayerNorm"]
    layers = range(XLMR["num_hidden_layers"])
    tables = ("word", "position", "token_type")
    return (
        vision_and_joint()
        | {f"{roberta}embeddings.{table}_embeddings.weight" for table in tables}
        | affine(*(f"{roberta}encoder.layer.{number}.{part}" for number in layers for part in parts))
        | affine(f"{roberta}embeddings.LayerNorm", "text_model.pre_LN", "text_model.transformation")
    )


CASES = [
    pytest.param(reference_altclip, AltCLIPModel, published_altclip(), id="altclip"),
    pytest.param(lambda: reference_clip(40), CLIPModel, published_clip(), id="clip"),
]


@pytest.mark.parametrize(("make", "kind", "names"), CASES)
@pytest.mark.parametrize("form", ["safetensors", "sharded safetensors", "pickle with the native names"])
def test_round_trip_writes_the_published_names_and_the_same_bits(
    make: Any, kind: Any, names: set[str], form: str, tmp_path: Path
) -> None:
    reference = make()
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if form.startswith("sharded") else "5GB")
    if form.startswith("sharded"):
        assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    if form.startswith("pickle"):
        (tmp_path / "theirs" / "model.safetensors").unlink()
        torch.save(reference.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    kind.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == names
    native = {name.replace("encoder.layer.", "encoder.layers."): tensor for name, tensor in written.items()}
    expected = dict(reference.named_parameters())
    assert native.keys() == {name.replace("encoder.layer.", "encoder.layers.") for name in expected}
    for name, parameter in expected.items():
        tensor = native[name.replace("encoder.layer.", "encoder.layers.")]
        assert tensor.dtype == parameter.dtype
        assert torch.equal(tensor, parameter.detach()), name


@pytest.mark.parametrize(("make", "kind", "names"), CASES)
def test_what_we_write_comes_back_from_transformers_bit_equal(
    make: Any, kind: Any, names: set[str], tmp_path: Path
) -> None:
    reference = make()
    reference.save_pretrained(tmp_path / "theirs")
    kind.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again, report = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = again.state_dict()
    assert state.keys() == reference.state_dict().keys()
    assert len(dict(reference.named_parameters())) == len(names)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(state[name], tensor), name


@torch.no_grad()
def test_shape_of_h14_and_g14_in_open_clips_files_equals_transformers(tmp_path: Path) -> None:
    """Exact GELU, a hidden width that is no multiple of the width, and a joint space wider than the text tower."""
    joint, hidden = 32, 192  # 44 * 4.3637 = 192.003
    text = {**CLIP_TEXT, "eos_token_id": 2, "hidden_act": "gelu", "projection_dim": joint}
    vision = {**VISION, "hidden_size": 44, "intermediate_size": hidden, "hidden_act": "gelu", "projection_dim": joint}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=joint)
    reference = transformers.CLIPModel(config).eval()
    perturb(reference, seed=4)
    tensors = openai_names(dict(reference.state_dict()), text_layers=3, vision_layers=3)
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    vision_cfg = {"image_size": 18, "layers": 3, "width": 44, "head_width": 22, "mlp_ratio": 4.3637, "patch_size": 6}
    text_cfg = {"context_length": 13, "vocab_size": 59, "width": 28, "heads": 2, "layers": 3, "mlp_ratio": 36 / 28}
    model = {"embed_dim": joint, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": {}})
    inputs = {**padded(CLIP_TEXTS[:4], filler=58), "pixel_values": pictures()}
    found, expected = load_model(tmp_path)(**inputs), reference(**inputs)
    for name in ("text_embeds", "image_embeds", "logits_per_image"):
        assert expected[name].abs().max() > 0.1
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)

"""transformers' weights through our models and out again: the published names, and the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from altclip_train.models import AltCLIPModel, CLIPModel
from tests.parity.references import CLIP_TEXT, VISION, XLMR, reference_altclip, reference_clip

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

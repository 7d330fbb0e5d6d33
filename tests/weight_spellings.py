"""The same weights under the names of other libraries, and when two models are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from altclip_train.models import AltCLIPModel, CLIPModel, build_clip
from tests.tiny_models import CLIP_TEXT_FIELDS, CLIP_TEXTS, STUDENT_TEXTS, VISION_FIELDS, padded, perturb

Tensors = dict[str, Tensor]
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 6,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 9,
            "layers": 2,
            "width": 8,
            "head_width": 4,
            "patch_size": 4,
            "mlp_ratio": 1.875,
        },
        "text_cfg": {
            "context_length": 14,
            "vocab_size": 37,
            "width": 10,
            "heads": 2,
            "layers": 3,
            "mlp_ratio": 2.0,
        },
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41]},
}


def legacy_clip(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> CLIPModel:
    """A CLIP that pools at the highest id, as open_clip's and OpenAI's do."""
    fields = {**CLIP_TEXT_FIELDS, "eos_token_id": 2, "hidden_act": "quick_gelu", **(text or {})}
    model = build_clip(
        vision={**VISION_FIELDS, **(vision or {})}, text=fields, projection_dim=6, logit_scale_init_value=2.6592
    )
    perturb(model, 3)
    return model.eval()


def saved(model: CLIPModel | AltCLIPModel, directory: Path) -> Tensors:
    """Tensors of the model as we publish them; only its config.json stays in the directory."""
    model.save_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    return tensors


@torch.no_grad()
def features(model: CLIPModel | AltCLIPModel) -> list[Tensor]:
    texts, filler = (STUDENT_TEXTS, 1) if isinstance(model, AltCLIPModel) else (CLIP_TEXTS, 36)
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))
    model.eval()
    return [
        *(model.get_text_features(*padded(texts, filler)), model.get_image_features(pixels)),
        model.logit_scale.detach(),
    ]


def assert_same(found: CLIPModel | AltCLIPModel, model: CLIPModel | AltCLIPModel) -> None:
    """Bit-equal weights and features, and the same shape."""
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    for ours, theirs in zip(features(found), features(model), strict=True):
        assert torch.equal(ours, theirs)


def openai_names(tensors: Tensors, text_layers: int = 3, vision_layers: int = 2) -> Tensors:
    """A CLIP as OpenAI names it: one matrix for queries, keys and values, projections the other way round."""
    named = {
        "logit_scale": tensors["logit_scale"],
        "text_projection": tensors["text_projection.weight"].T.contiguous(),
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T.contiguous(),
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        named[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        named[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        named[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        for ours, theirs, layers in (("text_model", "", text_layers), ("vision_model", "visual.", vision_layers)):
            for number in range(layers):
                old, new = f"{ours}.encoder.layers.{number}.", f"{theirs}transformer.resblocks.{number}."
                parts = [tensors[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                named[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
                named[f"{new}attn.out_proj.{kind}"] = tensors[f"{old}self_attn.out_proj.{kind}"]
                named[f"{new}ln_1.{kind}"] = tensors[f"{old}layer_norm1.{kind}"]
                named[f"{new}ln_2.{kind}"] = tensors[f"{old}layer_norm2.{kind}"]
                named[f"{new}mlp.c_fc.{kind}"] = tensors[f"{old}mlp.fc1.{kind}"]
                named[f"{new}mlp.c_proj.{kind}"] = tensors[f"{old}mlp.fc2.{kind}"]
    return named


def text_module(tensors: Tensors) -> Tensors:
    """open_clip's names where the text tower is a module of its own."""
    return {
        name if name == "logit_scale" or name.startswith("visual.") else f"text.{name}": tensor
        for name, tensor in tensors.items()
    }


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def write_shards(tensors: Tensors, directory: Path, index: str, write: Callable[[Tensors, Path], None]) -> None:
    """Two shards that share the tensors in turn, and their index."""
    names = sorted(tensors)
    weight_map = {}
    stem, suffix = index.removesuffix(".index.json").split(".")
    for number in (1, 2):
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        shard = f"{stem}-0000{number}-of-00002.{suffix}"
        write(part, directory / shard)
        weight_map |= dict.fromkeys(part, shard)
    write_json(directory / index, {"metadata": {"total_size": 1}, "weight_map": weight_map})

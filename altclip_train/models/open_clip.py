"""Shapes of open_clip's and OpenAI's CLIPs in the fields of a `transformers` config.json.

open_clip writes them into `open_clip_config.json`; OpenAI's files have none, but follow one rule.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altclip_train.models.config import LEGACY_EOS_TOKEN_ID
from altclip_train.models.weight_files import Stored

logger = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
# Fields that are read below, or say nothing about the network's values.
_FREE = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"},
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}
    | {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "output_tokens"}
    | {"timm_pool", "timm_proj", "timm_drop"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "eos_id"}
    | {"pad_id", "tokenizer_mode", "tokenizer_kwargs", "hf_tokenizer_name", "output_tokens", "hf_model_pretrained"}
    | {"hf_proj_type", "hf_pooler_type"},
}
# The other fields must be empty or have the values that a CLIP can have.
_ONLY = {
    "model_cfg": {},
    "vision_cfg": {"pool_type": ("tok",), "pos_embed_type": ("learnable",)},
    "text_cfg": {"pool_type": ("argmax", "eos"), "proj_type": ("linear",)},
}
# (width, layers) of OpenAI's vision transformers: heads are 64 wide and the activation is quick_gelu.
_OPENAI_TOWERS = {(768, 12), (1024, 24)}


def from_open_clip(content: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """`config.json` of a CLIP that open_clip describes. Raises ValueError that names a field we have no part for."""
    model = content.get("model_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(k), dict) for k in ("vision_cfg", "text_cfg")):
        raise ValueError(f"{source} has no model_cfg with a vision_cfg and a text_cfg")
    vision, text = model["vision_cfg"], model["text_cfg"]
    if text.get("hf_model_name") or vision.get("timm_model_name"):
        tower = text.get("hf_model_name") or vision.get("timm_model_name")
        raise ValueError(f"{source}: a tower is {tower!r} of another library; only open_clip's own towers can be read")
    for part, fields in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        for name, value in fields.items():
            if name not in _FREE[part] and value and value not in _ONLY[part].get(name, ()):
                raise ValueError(f"{source}: {part}.{name}={value!r} is not supported, only a plain CLIP can be read")
    if isinstance(vision.get("layers"), list):
        raise ValueError(f"{source}: vision_cfg.layers={vision['layers']} is a ResNet, expected a vision transformer")
    try:
        return _from_fields(model, vision, text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{source} lacks a number or has a wrong one: {error!r}") from error


def _from_fields(model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    size = vision.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    if height != width:
        raise ValueError(f"image_size={size} is not square")
    return _config(
        projection_dim=model["embed_dim"],
        text={
            "vocab_size": text.get("vocab_size", 49408),
            "max_position_embeddings": text.get("context_length", 77),
            "hidden_size": text.get("width", 512),
            "intermediate_size": int(text.get("width", 512) * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text.get("layers", 12),
            "num_attention_heads": text.get("heads", 8),
            "hidden_act": activation,
            "layer_norm_eps": _norm_eps("text_cfg", text),
            "eos_token_id": _end_of_text(text),
        },
        vision={
            "image_size": height,
            "patch_size": vision.get("patch_size", 16),
            "hidden_size": vision.get("width", 768),
            "intermediate_size": int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision.get("layers", 12),
            "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
            "hidden_act": activation,
            "layer_norm_eps": _norm_eps("vision_cfg", vision),
        },
    )


def _norm_eps(part: str, fields: Mapping[str, Any]) -> float:
    settings = fields.get("norm_kwargs") or {}
    if not isinstance(settings, Mapping) or not settings.keys() <= {"eps"}:
        raise ValueError(f"{part}.norm_kwargs={settings} is not supported, only eps can be set")
    return settings.get("eps", 1e-5)


def _end_of_text(text: Mapping[str, Any]) -> int:
    """Our `eos_token_id`: without a pooling of its own, a text is pooled at its highest id."""
    if text.get("pool_type") != "eos":
        return LEGACY_EOS_TOKEN_ID
    end = text.get("eos_id", 2)
    if end == LEGACY_EOS_TOKEN_ID:
        raise ValueError(
            f"text_cfg.pool_type='eos' with eos_id={end} is not supported: in a CLIP's config.json this id means "
            "the highest id of a text"
        )
    return end


def from_openai_shapes(tensors: Mapping[str, Stored], directory: Path) -> dict[str, Any]:
    """`config.json` of an OpenAI CLIP, from the shapes of its tensors under their `transformers` names.

    Shapes do not tell the heads or the activation: they are OpenAI's, so any other size needs a configuration.
    """
    try:
        text, vision = _tower(tensors, "text_model"), _tower(tensors, "vision_model")
        patch = tensors["vision_model.embeddings.patch_embedding.weight"].shape[-1]
        positions = tensors["vision_model.embeddings.position_embedding.weight"].shape[0]
        vocabulary = tensors["text_model.embeddings.token_embedding.weight"].shape[0]
        context = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
        projection_dim = tensors["text_projection.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise ValueError(f"{directory} has no config.json or {CONFIG}, and its tensors are not a whole CLIP") from error
    if (vision["hidden_size"], vision["num_hidden_layers"]) not in _OPENAI_TOWERS:
        raise ValueError(
            f"{directory} has no config.json or {CONFIG}, and its vision tower ({vision['num_hidden_layers']} layers "
            f"of width {vision['hidden_size']}) is none of OpenAI's: put the {CONFIG} of this model beside it"
        )
    logger.warning(
        "%s has no configuration: read as OpenAI's CLIP, with heads 64 wide and quick_gelu. "
        "If these weights were trained otherwise, put their %s beside them",
        directory,
        CONFIG,
    )
    image_size = patch * round((positions - 1) ** 0.5)
    return _config(
        projection_dim=projection_dim,
        text={
            **text,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            "eos_token_id": LEGACY_EOS_TOKEN_ID,
        },
        vision={**vision, "patch_size": patch, "image_size": image_size},
    )


def _tower(tensors: Mapping[str, Stored], tower: str) -> dict[str, Any]:
    hidden, width = tensors[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    ends = f"{tower}.encoder.layers.", ".layer_norm1.weight"
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": sum(name.startswith(ends[0]) and name.endswith(ends[1]) for name in tensors),
        "num_attention_heads": max(1, width // 64),
        "hidden_act": "quick_gelu",
    }


def _config(*, projection_dim: int, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    shared = {"projection_dim": projection_dim}
    return {
        "model_type": "clip",
        **shared,
        "text_config": {**text, **shared},
        "vision_config": {**vision, **shared},
    }

"""What makes an embedding the one that it is, as named parts, so that a cache can say which of them differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from altclip_train.models.altclip import DualEncoder
from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import TowerConfig

# Fields that change what weights compute without changing any of them; dropout is off wherever features are taken.
_BEHAVIOUR = ("hidden_act", "layer_norm_eps", "num_attention_heads", "pad_token_id", "eos_token_id")


def text_fingerprint(
    model: CLIPTextModel | DualEncoder,
    *,
    tokenizer: str,
    max_length: int,
    language: str,
    normalize_full_width: bool,
    dtype: str,
) -> dict[str, str]:
    """Of text embeddings: of a tower alone, its pooled states before the projection; of a whole model, projected.

    ``tokenizer`` is the fingerprint of one, ``dtype`` the type that embeddings are stored in.
    """
    whole = isinstance(model, DualEncoder)
    tower = model.text_model if whole else model
    weights = {"text_model": tower, "text_projection": model.text_projection} if whole else {"text_model": tower}
    return {
        "field": language,
        "dtype": dtype,
        "output": "projected" if whole else "pooled",
        "weights": weights_digest(_named(weights)),
        "architecture": _behaviour(tower.config),
        "tokenizer": tokenizer,
        "max_length": str(max_length),
        "normalize_full_width": str(normalize_full_width),
    }


def image_fingerprint(model: DualEncoder, *, transform: Mapping[str, Any], draft: bool, dtype: str) -> dict[str, str]:
    """Of projected image embeddings; ``transform`` are the fields of an image transform."""
    weights = {"vision_model": model.vision_model, "visual_projection": model.visual_projection}
    return {
        "field": "image",
        "dtype": dtype,
        "output": "projected",
        "weights": weights_digest(_named(weights)),
        "architecture": _behaviour(model.vision_model.config),
        "transform": json.dumps(transform, sort_keys=True),
        "draft": str(draft),
    }


def weights_digest(parameters: nn.Module | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters, in the order of their names."""
    named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    digest = hashlib.sha256()
    for name, parameter in sorted(named, key=lambda item: item[0]):
        tensor = parameter.detach().cpu().contiguous()  # neither copies what is so already
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named(modules: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
    return [item for prefix, module in modules.items() for item in module.named_parameters(prefix)]


def _behaviour(config: TowerConfig) -> str:
    return " ".join(f"{name}={getattr(config, name)}" for name in _BEHAVIOUR if hasattr(config, name))

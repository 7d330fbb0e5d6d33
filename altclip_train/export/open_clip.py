"""A CLIP in the files of open_clip: `open_clip_config.json` and `open_clip_model.safetensors`.

The names and fields are those of open_clip 3.3. An AltCLIP does not fit: open_clip's text tower for XLM-R projects the
pooled state of the encoder without a bias and without a norm between, so `pre_LN` and the bias of `transformation`
have no place.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from altclip_train.export.checkpoint import TrainedModel
from altclip_train.model_card import Usage
from altclip_train.models import CLIPConfig, CLIPModel
from altclip_train.models.config import LEGACY_EOS_TOKEN_ID
from altclip_train.models.spelling import OPENAI_TRANSPOSED, openai_name
from altclip_train.models.weights import save_tensors
from altclip_train.processing import ImageTransform
from altclip_train.processing.tokenizer_guard import METADATA_KEY

_INTERPOLATION = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}

USAGE = Usage(
    library="open_clip",
    text="""\
```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:DIR")
tokenizer = open_clip.get_tokenizer("local-dir:DIR")
```

Before an upload to a model hub, put the repository's name into `hf_tokenizer_name` of `open_clip_config.json`.""",
)


def write_open_clip(found: TrainedModel, directory: Path) -> None:
    """Write a CLIP in open_clip's layout. Raises ValueError, saying why, for what open_clip cannot hold."""
    model = found.model
    if not isinstance(model, CLIPModel):
        raise ValueError(
            "open_clip has no place for this text tower: its own one for XLM-R projects the encoder's pooled state "
            "without a bias and without a norm between, AltCLIP has pre_LN and a transformation with a bias there; "
            "use --format altclip or --format onnx"
        )
    config = {
        "model_cfg": open_clip_config(model.config),
        "preprocess_cfg": _preprocessing(
            found.processor.image_processor.transform, model.config.vision_config.image_size
        ),
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "open_clip_config.json").write_text(text, encoding="utf-8")
    metadata = {METADATA_KEY: found.processor.tokenizer.fingerprint}
    save_tensors(open_clip_state(model), directory / "open_clip_model.safetensors", metadata=metadata)
    found.processor.save_pretrained(directory)
    found.write_card(directory, USAGE)


def open_clip_state(model: CLIPModel) -> dict[str, Tensor]:
    """The weights under open_clip's names, as contiguous tensors on the CPU."""
    state = {}
    for ours, tensor in model.state_dict().items():
        name = openai_name(ours, model.towers)
        state[name] = (tensor.T if name in OPENAI_TRANSPOSED else tensor).detach().cpu().contiguous()
    return state


def open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """`model_cfg` of open_clip. Raises ValueError for a shape that it cannot describe."""
    text, vision = config.text_config, config.vision_config
    if text.hidden_act != vision.hidden_act:
        raise ValueError(
            f"open_clip has one activation for both towers; this text tower has {text.hidden_act}, "
            f"the image tower {vision.hidden_act}"
        )
    if vision.num_channels != 3:
        raise ValueError(f"open_clip takes pictures of 3 channels; this image tower takes {vision.num_channels}")
    # By default a text's vector is taken at its highest id, which the last entry of a vocabulary always is.
    highest = text.eos_token_id in (LEGACY_EOS_TOKEN_ID, text.vocab_size - 1)
    pooling = {} if highest else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _ratio(vision.intermediate_size, vision.hidden_size),
            **_norm(vision.layer_norm_eps),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": "./",  # any name says: the tokenizer's files lie in this directory
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _ratio(text.intermediate_size, text.hidden_size),
            **_norm(text.layer_norm_eps),
            **pooling,
        },
    }


def _ratio(hidden: int, width: int) -> float:
    """The number from which open_clip computes ``int(width * ratio)`` as the width between the two layers."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _norm(eps: float) -> dict[str, Any]:
    return {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}


def _preprocessing(transform: ImageTransform, image_size: int) -> dict[str, Any]:
    modes = {image_size: "shortest", (image_size, image_size): "squash"}
    if transform.size not in modes or transform.crop_size != image_size or transform.resample not in _INTERPOLATION:
        raise ValueError(
            f"open_clip resizes and crops pictures to {image_size} pixels, bicubic or bilinear; this model's transform "
            f"resizes to {transform.size}, crops {transform.crop_size}, with {transform.resample.name.lower()}"
        )
    return {
        "mean": list(transform.mean),
        "std": list(transform.std),
        "interpolation": _INTERPOLATION[transform.resample],
        "resize_mode": modes[transform.size],
    }

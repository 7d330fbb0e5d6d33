"""What a model directory says about its pictures, whichever library wrote it, as preprocessor_config.json spells it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from altclip_train.files import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

OPEN_CLIP_FILE = "open_clip_config.json"
# "random" is one of the two in training; open_clip evaluates with bicubic.
_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,
}


def read_image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that was read, and its settings.

    It is preprocessor_config.json, else processor_config.json with an image part, else open_clip_config.json.
    Raises FileNotFoundError without any, ValueError naming a damaged file, or a setting that cannot be followed.
    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    combined = folder / "processor_config.json"
    if combined.is_file() and isinstance(settings := read_json(combined).get("image_processor"), dict):
        return combined, settings
    foreign = folder / OPEN_CLIP_FILE
    if foreign.is_file():
        return foreign, _from_open_clip(foreign, read_json(foreign))
    raise FileNotFoundError(
        f"no {path}: copy the preprocessor_config.json of the CLIP model there, or write one with OpenAI's values: "
        f"ImageTransform(size=224, crop_size=224).save_pretrained({str(folder)!r})"
    )


def _from_open_clip(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with which open_clip evaluates; what a file leaves out has OpenAI's values.

    Only a crop by an odd number of pixels may lie one pixel away: open_clip rounds its half to even, CLIP down.
    """
    given, model = content.get("preprocess_cfg") or {}, content.get("model_cfg") or {}
    if not isinstance(given, Mapping) or not isinstance(model, Mapping):
        raise ValueError(f"{path}: preprocess_cfg and model_cfg must be objects")
    edge = _image_size(path, model.get("vision_cfg"))
    mode, interpolation = given.get("resize_mode") or "shortest", given.get("interpolation") or "bicubic"
    sizes = {"shortest": {"shortest_edge": edge}, "squash": {"height": edge, "width": edge}}
    if mode not in [*sizes]:  # a list, because a file may hold what cannot be a key
        raise ValueError(f"{path}: preprocess_cfg.resize_mode={mode!r} is not supported, only {' or '.join(sizes)}")
    if interpolation not in [*_RESAMPLE]:
        raise ValueError(f"{path}: preprocess_cfg.interpolation={interpolation!r}, expected {' or '.join(_RESAMPLE)}")
    return {
        "size": sizes[mode],
        "crop_size": edge,
        "image_mean": _three(given.get("mean") or CLIP_MEAN),
        "image_std": _three(given.get("std") or CLIP_STD),
        "resample": _RESAMPLE[interpolation],
    }


def _image_size(path: Path, vision: Any) -> int:
    """The image tower's, which open_clip uses whatever `preprocess_cfg` says."""
    size = vision.get("image_size", 224) if isinstance(vision, Mapping) else 224
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if height != width or not isinstance(height, int):
        raise ValueError(f"{path}: vision_cfg.image_size={size}, expected one number for both edges")
    return height


def _three(value: Any) -> Any:
    """open_clip takes one number for all three channels."""
    return [value] * 3 if isinstance(value, int | float) else value

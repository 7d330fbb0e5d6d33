"""Hub ids: `org/name` becomes a local directory through `huggingface_hub`, where that is installed.

A local directory always wins, and nothing is fetched that is not needed.
"""

from __future__ import annotations

import re
from pathlib import Path

# What shapes, tokenizers and image transforms are read from, and the card, which goes along when weights are exported.
SMALL_FILES = ("*.json", "*.txt", "*.txt.gz", "*.bpe.model", "README.md")
# Kinds of weights, best first: a repository often holds the same ones several times.
WEIGHT_FILES = (
    ("model.safetensors", "model-*.safetensors"),
    ("open_clip_model.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("open_clip_pytorch_model.bin",),
)


def is_hub_id(path_or_id: str | Path) -> bool:
    """Whether this names a model on the hub: `org/name`, where neither it nor `org` is a local directory."""
    text = str(path_or_id)
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text)) and not Path(text).parent.is_dir()


def local_directory(path_or_id: str | Path, *, weights: bool = False) -> Path:
    """Directory of a hub id, fetched if need be, with its weights on request; any path is returned as it is.

    Raises ModuleNotFoundError without `huggingface_hub`, FileNotFoundError when the id cannot be fetched.
    """
    if not is_hub_id(path_or_id):
        return Path(path_or_id).expanduser()
    directory = _fetch(str(path_or_id), SMALL_FILES)
    if weights:
        for patterns in WEIGHT_FILES:
            directory = _fetch(str(path_or_id), patterns)
            if any(file for pattern in patterns for file in directory.glob(pattern)):
                break
    return directory


def model_directory(path_or_id: str | Path, *, weights: bool = False) -> Path:
    """`local_directory` of a model. Raises what that raises, and FileNotFoundError for what can hold no model."""
    directory = local_directory(path_or_id, weights=weights)
    if directory.is_file():
        raise FileNotFoundError(f"{directory} is a file, expected a model directory: give {directory.parent}")
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give a model directory, or a hub id ORG/NAME")
    if not (directory / "config.json").exists() and (directory / "model" / "config.json").is_file():
        raise FileNotFoundError(f"{directory} is a run: give its model directory, {directory / 'model'}")
    return directory


def _fetch(hub_id: str, patterns: tuple[str, ...]) -> Path:
    by_hand = f"or download {hub_id} by hand and pass its directory"
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{hub_id} is no directory here, and hub ids need huggingface_hub: pip install huggingface_hub, {by_hand}"
        ) from error
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except Exception as error:  # the hub and its network layers raise many kinds
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise FileNotFoundError(
            f"{hub_id} is no directory here and could not be fetched as a hub id ({type(error).__name__}: {reason}); "
            f"check the name and the network, {by_hand}"
        ) from error

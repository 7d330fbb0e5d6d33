"""Weights know their tokenizer: its hash lies in the header of their safetensors file and in checkpoints.

Token ids mean nothing but rows of an embedding table, so a text tower with another tokenizer gives wrong
features without any error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open

METADATA_KEY = "tokenizer_sha256"


class Fingerprinted(Protocol):
    """The part of a tokenizer that is compared."""

    fingerprint: str
    name_or_path: str


def trained_tokenizer(directory: str | Path) -> str | None:
    """Hash of the tokenizer that the weights in a directory were trained with; None where they do not say."""
    try:
        for name in ("model.safetensors", "open_clip_model.safetensors"):
            file, index = Path(directory, name), Path(directory, f"{name}.index.json")
            if not file.is_file() and index.is_file():
                file = file.with_name(min(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            if file.is_file():
                with safe_open(file, framework="numpy") as header:
                    return (header.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError):
        pass  # damaged weights are reported where weights are read; a processor needs none
    return None


def check_same_tokenizer(tokenizer: Fingerprinted, expected: str | None, *, weights: str) -> None:
    """Raise ValueError when ``weights``, a name for the message, were trained with another tokenizer.

    Nothing is ``expected`` of weights that do not say, such as published ones.
    """
    if expected is not None and tokenizer.fingerprint != expected:
        raise ValueError(
            f"{weights} belong to another tokenizer than the one of {tokenizer.name_or_path or 'this process'}: "
            f"its sha256 is {tokenizer.fingerprint}, the weights were trained with {expected}. "
            "Use the tokenizer files that were written with these weights"
        )

"""The JSON files of a tokenizer directory, read and written with errors that name the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altclip_train.files import contents, read_json

# AltCLIP was evaluated with 77 tokens, CLIP has no more positions. For directories that do not say.
DEFAULT_MAX_LENGTH = 77


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """What a directory says about a tokenizer beside its vocabulary."""

    model_max_length: int = DEFAULT_MAX_LENGTH
    pad_token: str | None = None

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> TokenizerSettings:
        """Read tokenizer_config.json, else special_tokens_map.json; defaults without them.

        Raises ValueError for a model_max_length that is no number of tokens.
        """
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            path = Path(directory) / name
            if path.is_file():
                config.update(read_json(path))
        # transformers writes 1e30 for "no limit", old files as a float.
        length = config.get("model_max_length") or DEFAULT_MAX_LENGTH
        if not isinstance(length, int | float) or length < 2:
            raise ValueError(f"{Path(directory) / 'tokenizer_config.json'}: model_max_length is {length!r}")
        pad = config.get("pad_token")
        return cls(model_max_length=int(length), pad_token=pad["content"] if isinstance(pad, dict) else pad)


def read_model(path: Path) -> tuple[dict[str, Any], str]:
    """Content of a tokenizer.json and the kind of its model, which the oldest files do not name."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), list | dict):
        raise ValueError(f"{path} has no model with a vocab: it is not a tokenizer.json of the tokenizers library")
    return content, model.get("type") or ("BPE" if "merges" in model else "Unigram")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def missing(directory: str | Path, wanted: str, kind: str) -> FileNotFoundError:
    """The error for a directory without a tokenizer; it lists what is there."""
    folder = Path(directory)
    if not folder.is_dir():
        return FileNotFoundError(f"no {kind}: {folder} is not a directory")
    return FileNotFoundError(
        f"no {kind} in {folder}: expected {wanted}, found {contents(folder)}. "
        "Copy the tokenizer files of the model there, or point to the directory that has them"
    )

"""What every configuration does: check its values, be read from `config.json`, be written to it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from altclip_train.files import contents, read_json, written_whole
from altclip_train.hub import model_directory

# Sizes above these come from a damaged or hostile file: building the model would take all memory or hours before the
# first weight is compared. Each is several times that of the largest published transformer.
LARGEST: dict[str, int] = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1_000,
    "hidden_size": 100_000,
    "intermediate_size": 400_000,
    "projection_dim": 100_000,
    "project_dim": 100_000,
    "vocab_size": 10_000_000,
    "type_vocab_size": 1_000,
    "max_position_embeddings": 1_000_000,
    "num_channels": 1_000,
    "image_size": 10_000,
    "patch_size": 10_000,
}


def read_config_file(directory: Path) -> dict[str, Any]:
    """The `config.json` of a model directory. Raises FileNotFoundError or ValueError that name the file."""
    file = directory / "config.json"
    if file.is_symlink() and not file.exists():
        raise FileNotFoundError(f"{file} is a link that leads nowhere: download the file again")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {directory} holds {contents(directory)}")
    return read_json(file)


class StoredConfig(ABC):
    """Base of all configurations, which are dataclasses beside it."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]  # the class in `transformers` of a model with this configuration

    @classmethod
    @abstractmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build from a plain dict; keys that describe no shape are left out."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as it stands in `config.json`."""

    @classmethod
    def of_model(cls, content: Mapping[str, Any]) -> Self:
        """Build from a whole `config.json`. Raises ValueError for another kind of model."""
        return cls.from_dict(content)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> Self:
        """Read `config.json` of a directory or hub id. Raises FileNotFoundError or ValueError that name the file."""
        directory = model_directory(path_or_id)
        content = read_config_file(directory)
        try:
            return cls.of_model(content)
        except ValueError as error:
            raise ValueError(f"{directory / 'config.json'}: {error}") from error

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json`; a reader sees either the old file or the whole new one."""
        content = {"architectures": [self.architecture], **self.to_dict()}
        with written_whole(Path(directory) / "config.json") as partial:
            partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _require_sizes(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{type(self).__name__}: {name}={value!r} must be an integer of at least 1")
            if value > LARGEST[name]:
                raise ValueError(
                    f"{type(self).__name__}: {name}={value} is above {LARGEST[name]}, the largest that is taken "
                    "for a real model: the configuration is damaged"
                )

    def _require_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{type(self).__name__}: {name}={value!r} must be a number")

    def _require_probabilities(self, *names: str) -> None:
        self._require_numbers(*names)
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}: {name}={getattr(self, name)} must lie in [0, 1)")

    def _require_ids_below(self, limit_name: str, *names: str) -> None:
        limit = getattr(self, limit_name)
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
                raise ValueError(
                    f"{type(self).__name__}: {name}={value!r} must be an integer in [0, {limit_name}={limit})"
                )

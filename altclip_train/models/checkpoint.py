"""A model directory as it lies on disk, whichever library wrote it: its configuration and where its weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from altclip_train.files import contents, read_json
from altclip_train.hub import model_directory
from altclip_train.models import open_clip
from altclip_train.models.config_base import StoredConfig, read_config_file
from altclip_train.models.spelling import respell
from altclip_train.models.weight_files import Stored, WeightFiles, list_weights

Config = TypeVar("Config", bound=StoredConfig)


@dataclass(kw_only=True)
class Checkpoint:
    """What is known of a model directory before a single weight is read."""

    directory: Path
    config_name: str  # of the file that gave the shape
    content: dict[str, Any]  # as in a config.json of `transformers`

    @cached_property
    def files(self) -> WeightFiles:
        """What the weight files hold. Raises FileNotFoundError or ValueError that name the file."""
        return list_weights(self.directory)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Where each tensor lies, by its name in a whole model of `transformers`."""
        return respell(self.files.tensors, self.model_type)

    @property
    def model_type(self) -> Any:
        return self.content.get("model_type")

    def config(self, wanted: type[Config]) -> Config:
        """The configuration of the kind `wanted`: of the whole directory, or of a tower in it.

        Raises ValueError that names the file, for values out of range and for another kind of model.
        """
        try:
            return wanted.of_model(self.content)
        except ValueError as error:
            raise ValueError(f"{self.directory / self.config_name}: {error}") from error


def open_checkpoint(path_or_id: str | Path) -> Checkpoint:
    """Look at a model directory or hub id. Raises FileNotFoundError or ValueError that name the file."""
    directory = model_directory(path_or_id, weights=True)
    own, foreign = directory / "config.json", directory / open_clip.CONFIG
    if own.is_file() or own.is_symlink():
        return Checkpoint(directory=directory, config_name=own.name, content=read_config_file(directory))
    if foreign.is_file():
        content = open_clip.from_open_clip(read_json(foreign), foreign)
        return Checkpoint(directory=directory, config_name=foreign.name, content=content)
    if not list(directory.glob("*.pt")):
        raise FileNotFoundError(f"{own} is missing, and so is {foreign.name}: {directory} holds {contents(directory)}")
    tensors = respell(list_weights(directory).tensors, None)
    content = open_clip.from_openai_shapes(tensors, directory)
    return Checkpoint(directory=directory, config_name="own tensors", content=content)

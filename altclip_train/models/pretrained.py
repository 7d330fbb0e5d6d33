"""What every model here can do with a directory: be read from it, and be written to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from altclip_train.models.checkpoint import Checkpoint, open_checkpoint
from altclip_train.models.spelling import Towers
from altclip_train.models.weights import fill, published_state, save_tensors

_TOKENIZER = "tokenizer_sha256"


class Pretrained(nn.Module):
    """A module whose weights have published names and whose shape is a `config.json`."""

    config_class: ClassVar[type[Any]]
    towers: ClassVar[Towers]
    part: ClassVar[str] = ""  # what names start with where this is a part of a whole model
    config: Any
    _tokenizer_sha256: str | None = None

    @property
    def tokenizer_sha256(self) -> str | None:
        """Fingerprint of the tokenizer whose ids are the rows of the vocabulary; None where it is not known."""
        return self._tokenizer_sha256

    @tokenizer_sha256.setter
    def tokenizer_sha256(self, value: str | None) -> None:
        self._tokenizer_sha256 = value

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Model of a directory or hub id in any layout we read, in eval mode; a tower is taken out of a whole model.

        Memory beyond the weights stays small. Raises FileNotFoundError or ValueError that name the file.
        """
        return cls.from_checkpoint(open_checkpoint(path_or_id), dtype=dtype, device=device)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Self:
        """`from_pretrained` of a directory that has been looked at."""
        config = checkpoint.config(cls.config_class)
        with torch.device("meta"):
            model = cls(config)
        fill(model, checkpoint, towers=cls.towers, part=cls.part, dtype=dtype, device=device)
        model.tokenizer_sha256 = checkpoint.files.metadata.get(_TOKENIZER)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the published layout."""
        known = {} if self.tokenizer_sha256 is None else {_TOKENIZER: self.tokenizer_sha256}
        state = published_state(self, towers=self.towers)
        save_tensors(state, Path(directory) / "model.safetensors", metadata=known)
        self.config.save_pretrained(directory)

"""What the documented `forward`s return, and the features that work for either version of the interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor
from torch.export import register_dataclass


@dataclass(eq=False)
class ModelOutput:
    """Named fields that also work like a dict and, by index, like a tuple of the fields that are not None.

    As with a dict, iteration gives the names: unpack `to_tuple()`, or `**output`.
    """

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None, in their order."""
        return tuple(entry.name for entry in fields(self) if getattr(self, entry.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """Their values."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Both."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """Value of a field, or `default` where it is None or unknown."""
        return getattr(self, name) if name in self.keys() else default

    def to_tuple(self) -> tuple[Any, ...]:
        """The values as a tuple; outputs inside become tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())

    def returned(self, return_dict: bool | None) -> Self | tuple[Any, ...]:
        """This output, or its tuple for `return_dict=False`."""
        return self if return_dict is None or return_dict else self.to_tuple()

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}: this {type(self).__name__} has {', '.join(self.keys())}")
        return getattr(self, key)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(eq=False)
class TowerOutput(ModelOutput):
    """States of one tower; L is P for pictures."""

    last_hidden_state: Tensor  # (B, L, W)
    pooler_output: Tensor  # (B, W)
    hidden_states: tuple[Tensor, ...] | None = None  # (B, L, W) before the first block and after each
    attentions: tuple[Tensor, ...] | None = None  # (B, H, L, L) of each block


@dataclass(eq=False, kw_only=True)
class AltCLIPOutput(ModelOutput):
    """Scores of B texts and N pictures."""

    loss: Tensor | None = None  # []
    logits_per_image: Tensor  # (N, B), cosine similarity times exp(logit_scale)
    logits_per_text: Tensor  # (B, N)
    text_embeds: Tensor  # (B, D), of length 1
    image_embeds: Tensor  # (N, D), of length 1
    text_model_output: TowerOutput
    vision_model_output: TowerOutput


# As inputs and outputs of exported graphs.
register_dataclass(TowerOutput)
register_dataclass(AltCLIPOutput)


def with_pooler_output(features: Tensor) -> Tensor:
    """The features (B, D) with themselves as `.pooler_output`, which is where version 5 of the interface has them.

    The attribute sits on a view: on the tensor itself it would be a reference cycle that keeps its memory.
    """
    view = features.view_as(features)
    view.pooler_output = features  # pyright: ignore[reportAttributeAccessIssue]
    return view

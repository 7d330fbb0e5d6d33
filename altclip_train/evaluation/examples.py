"""A few queries of a retrieval benchmark with what they found: what a person looks at in the report."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PICTURES, TOP, HEAT = 8, 5, 16


@dataclass(frozen=True, kw_only=True)
class RetrievalExamples:
    """Of pictures at even distances, the same for every language and model; ``captions`` are their first texts."""

    pictures: Tensor  # (P,)
    captions: Tensor  # (P,)
    found_pictures: Tensor  # (P, K) best pictures of each caption
    found_texts: Tensor  # (P, K) best texts of each picture
    heat_pictures: Tensor  # (H,)
    heat_captions: Tensor  # (H,)
    similarity: Tensor  # (H, H) of caption (row) and picture


def retrieval_examples(image_features: Tensor, text_features: Tensor, text_to_image: Tensor) -> RetrievalExamples:
    """Examples out of (N, D), (M, D) and (M,)."""
    first = torch.full((len(image_features),), len(text_features)).scatter_reduce(
        0, text_to_image, torch.arange(len(text_features)), "amin"
    )  # (N,) first text of each picture
    shown, heat = (_spread(len(image_features), count) for count in (PICTURES, HEAT))
    return RetrievalExamples(
        pictures=shown,
        captions=first[shown],
        found_pictures=_best(text_features[first[shown]], image_features),
        found_texts=_best(image_features[shown], text_features),
        heat_pictures=heat,
        heat_captions=first[heat],
        similarity=text_features[first[heat]] @ image_features[heat].T,
    )


def _spread(total: int, count: int) -> Tensor:
    """At most ``count`` different places at even distances."""
    return torch.linspace(0, total - 1, min(count, total)).round().long().unique()


def _best(queries: Tensor, candidates: Tensor) -> Tensor:
    return (queries @ candidates.T).sort(dim=1, descending=True, stable=True).indices[:, :TOP].clone()

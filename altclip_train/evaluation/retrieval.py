"""Image-text retrieval in both directions.

R@K of a query is 1 when any of its positives is among the K best-scoring candidates, and 0 otherwise; it is
averaged over queries. (The textbook recall divides by the number of positives instead.) mAP@R tells how many of an
image's R texts are among its best R; of a text, which has one image, it is R@1. Ties: see :mod:`ranks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from altclip_train.evaluation.ranks import MAX_SCORES, retrieval_ranks

CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class RetrievalOutcome:
    """Ranks (from 0) of every query of a benchmark."""

    image_ranks: Tensor  # (N,) of each image's best text
    text_ranks: Tensor  # (M,) of each text's image
    text_to_image: Tensor  # (M,)
    average_precision: Tensor  # (N,) of the best R texts of an image that has R

    def rows(self) -> Tensor:
        """(N, 8): number of texts, how many of them find the image by each cutoff, the same of the image, AP."""
        images = len(self.image_ranks)
        texts = torch.bincount(self.text_to_image, minlength=images).double()
        found = [
            torch.bincount(self.text_to_image, weights=(self.text_ranks < k).double(), minlength=images)
            for k in CUTOFFS
        ]
        hits = [(self.image_ranks < k).double() for k in CUTOFFS]
        return torch.stack([texts, *found, *hits, self.average_precision.double()], dim=1)

    def scores(self, rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
        sums, images = weights @ rows, weights.sum(-1)  # (..., 8), (...)
        names = [f"text_to_image_R@{k}" for k in CUTOFFS] + [f"image_to_text_R@{k}" for k in CUTOFFS]
        recalls = torch.cat([sums[..., 1:4] / sums[..., :1], sums[..., 4:7] / images[..., None]], dim=-1)
        scores = dict(zip(names, recalls.unbind(-1), strict=True))
        return scores | {"mean_recall": recalls.mean(-1), "image_to_text_mAP@R": sums[..., 7] / images}

    def median_ranks(self) -> dict[str, float]:
        """Medians of ranks that count from 1, in both directions."""
        directions = {"text_to_image": self.text_ranks, "image_to_text": self.image_ranks}
        return {name: float(np.median(ranks.numpy())) + 1 for name, ranks in directions.items()}


def retrieval_outcome(
    image_features: Tensor, text_features: Tensor, text_to_image: Tensor, *, max_scores: int = MAX_SCORES
) -> RetrievalOutcome:
    """Ranks in both directions from (N, D), (M, D) and (M,): each text's image.

    Features are compared by inner product: normalise them before. Every image needs at least one text.
    """
    _check_text_to_image(len(image_features), len(text_features), text_to_image)
    ranks = retrieval_ranks(image_features, text_features, text_to_image, max_scores=max_scores)
    return RetrievalOutcome(
        image_ranks=ranks.images.cpu(),
        text_ranks=ranks.texts.cpu(),
        text_to_image=text_to_image.cpu(),
        average_precision=ranks.average_precision.cpu(),
    )


def retrieval_metrics(
    image_features: Tensor, text_features: Tensor, text_to_image: Tensor, *, max_scores: int = MAX_SCORES
) -> dict[str, float]:
    """R@1, 5 and 10 in both directions, their mean, and mAP@R, from (N, D), (M, D) and (M,)."""
    outcome = retrieval_outcome(image_features, text_features, text_to_image, max_scores=max_scores)
    rows = outcome.rows()
    return {name: value.item() for name, value in outcome.scores(rows, rows.new_ones(len(rows))).items()}


def retrieval_chance(num_images: int, text_to_image: Tensor) -> dict[str, float]:
    """Expected recalls of random scores; ``text_to_image`` (M,) is each text's image.

    A query with p positives among n candidates misses all of them in its top K with probability
    C(n - p, K) / C(n, K).
    """
    num_texts = len(text_to_image)
    _check_text_to_image(num_images, num_texts, text_to_image)
    texts_per_image = torch.bincount(text_to_image, minlength=num_images).tolist()
    chance: dict[str, float] = {}
    for k in CUTOFFS:
        chance[f"text_to_image_R@{k}"] = min(k, num_images) / num_images
    for k in CUTOFFS:
        top = min(k, num_texts)
        misses = [math.comb(num_texts - p, top) / math.comb(num_texts, top) for p in texts_per_image]
        chance[f"image_to_text_R@{k}"] = 1 - sum(misses) / num_images
    return chance | {"mean_recall": sum(chance.values()) / len(chance)}


def _check_text_to_image(num_images: int, num_texts: int, text_to_image: Tensor) -> None:
    if num_images == 0 or text_to_image.shape != (num_texts,) or num_texts == 0:
        shape = tuple(text_to_image.shape)
        raise ValueError(f"expected one image index per text, got {shape} for {num_images} images, {num_texts} texts")
    low, high = int(text_to_image.min()), int(text_to_image.max())
    if low < 0 or high >= num_images:
        raise ValueError(f"image indices of texts lie in [{low}, {high}], expected [0, {num_images - 1}]")

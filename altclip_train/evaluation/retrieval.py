"""Recall of image-text retrieval, without ever holding the whole score matrix.

R@K of a query is 1 when any of its positives is among the K best-scoring candidates, and 0 otherwise; it is
averaged over queries. (The textbook recall divides by the number of positives instead.) Candidates with equal
scores are ordered by index, so a candidate that scores the same as the positive and stands before it ranks
before it: a collapsed model gets chance level, never a perfect score.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)


def best_positive_ranks(
    queries: Tensor,
    candidates: Tensor,
    query_ids: Tensor,
    candidate_ids: Tensor,
    *,
    max_scores: int = 2**23,
) -> Tensor:
    """Rank (0 = best) of the best positive of each query, (Q,) int64, from (Q, D), (N, D), (Q,) and (N,).

    A candidate is a positive when its id equals the query's. At most ``max_scores`` scores exist at a time.
    Raises ValueError for queries without a positive and for features that are not finite (NaN would count
    as found).
    """
    queries, candidates = queries.float(), candidates.float()
    for what, features in (("query", queries), ("candidate", candidates)):
        bad = (~features.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            raise ValueError(f"{len(bad)} of {len(features)} {what} features are not finite, the first is {bad[0]}")
    orphans = (~torch.isin(query_ids, candidate_ids)).nonzero().flatten()
    if len(orphans):
        raise ValueError(f"{len(orphans)} of {len(queries)} queries have no positive, the first is {orphans[0]}")

    total = len(candidates)
    index = torch.arange(total, device=candidates.device)
    rows = max(1, max_scores // total)
    ranks = []
    for query, ids in zip(queries.split(rows), query_ids.split(rows), strict=True):
        scores = query @ candidates.T  # (q, N)
        positive = ids[:, None] == candidate_ids
        best = scores.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)  # (q, 1)
        equal = scores == best
        first = torch.where(equal & positive, index, total).amin(1, keepdim=True)  # (q, 1)
        ranks.append(((scores > best) | (equal & (index < first))).sum(1))
    return torch.cat(ranks)


def retrieval_metrics(
    image_features: Tensor, text_features: Tensor, text_to_image: Tensor, *, max_scores: int = 2**23
) -> dict[str, float]:
    """R@1, 5 and 10 in both directions and their mean, from (N, D), (M, D) and (M,): each text's image.

    Features are compared by inner product: normalise them before. Every image needs at least one text.
    """
    _check_text_to_image(len(image_features), len(text_features), text_to_image)
    images = torch.arange(len(image_features), device=text_to_image.device)
    directions = {
        "text_to_image": (text_features, image_features, text_to_image, images),
        "image_to_text": (image_features, text_features, images, text_to_image),
    }
    metrics: dict[str, float] = {}
    for direction, arguments in directions.items():
        ranks = best_positive_ranks(*arguments, max_scores=max_scores)
        for k in CUTOFFS:
            metrics[f"{direction}_R@{k}"] = (ranks < k).double().mean().item()
    return metrics | {"mean_recall": sum(metrics.values()) / len(metrics)}


def retrieval_chance(num_images: int, text_to_image: Tensor) -> dict[str, float]:
    """Expected :func:`retrieval_metrics` of random scores; ``text_to_image`` (M,) is each text's image.

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

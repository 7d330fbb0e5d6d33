"""Ranks of what belongs to a query among all candidates, without ever holding the whole score matrix.

The one rule for ties: scores that differ by no more than float32 can be off (``TOLERANCE`` times the lengths of the
vectors) are equal, and of equal candidates the one with the lower index ranks first. So a duplicate ranks the same on
any device and in any order of summation, and a collapsed model gets chance level, never a perfect score. Peers rank
equal scores as ``topk`` happens to return them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE = 4 * torch.finfo(torch.float32).eps
MAX_SCORES = 2**21  # at a time: 8 MB, and as much for a comparison


class RetrievalRanks(NamedTuple):
    """Ranks count from 0. Of an image with R texts, average precision is that of its best R candidates."""

    images: Tensor  # (N,) of each image's best text
    texts: Tensor  # (M,) of each text's image
    average_precision: Tensor  # (N,) float64


class LabelRanks(NamedTuple):
    ranks: Tensor  # (N,) of the right class, from 0
    predictions: Tensor  # (N,)


def label_ranks(
    image_features: Tensor, classifier: Tensor, labels: Tensor, *, max_scores: int = MAX_SCORES
) -> LabelRanks:
    """Rank of each image's class from (N, D), (C, D) and (N,). Raises ValueError for features that are not finite."""
    images, classes = _finite("image", image_features), _finite("class", classifier)
    tolerance = _tolerance(images, classes)
    ranks, predictions = [], []
    for rows, scores in _tiles(images, classes, max_scores):
        counter = _Counter(scores, tolerance[rows])
        own = labels[rows]
        rank = counter.before(scores.gather(1, own[:, None]).squeeze(1), own)
        best = counter.first_of_the_best()
        ranks.append(rank)
        predictions.append(torch.where(rank == 0, own, best))
    return LabelRanks(torch.cat(ranks), torch.cat(predictions))


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, text_to_image: Tensor, *, max_scores: int = MAX_SCORES
) -> RetrievalRanks:
    """Ranks in both directions from (N, D), (M, D) and (M,), each score computed once.

    Raises ValueError for images without a text and for features that are not finite (NaN would count as found).
    """
    images, texts = _finite("image", image_features), _finite("text", text_features)
    tolerance = _tolerance(images, texts)  # (N,)
    text_tolerance = _tolerance(texts, images)  # (M,)
    own_scores = _own_scores(images, texts, text_to_image, max_scores)  # (M,)
    groups = _Groups(text_to_image, len(images))
    image_ranks, precisions = [], []
    text_ranks = torch.zeros(len(texts), dtype=torch.int64, device=texts.device)
    for rows, scores in _tiles(images, texts, max_scores):
        counter = _Counter(scores, tolerance[rows])
        own = groups.texts[rows]  # (rows, R), padded with M
        ranks = torch.full(own.shape, len(texts), device=own.device)
        for slot in range(int(groups.sizes[rows].max())):
            has = (own[:, slot] < len(texts)).nonzero().squeeze(1)
            text = own[has, slot]
            ranks[has, slot] = counter.before(own_scores[text], text, has)
        image_ranks.append(ranks.amin(1))
        precisions.append(_average_precision(ranks, groups.sizes[rows]))
        text_ranks += _images_before(scores, own_scores, text_tolerance, text_to_image, rows)
    return RetrievalRanks(torch.cat(image_ranks), text_ranks, torch.cat(precisions))


class _Counter:
    """How many candidates of each row of a tile of scores (rows, M) rank before a given one."""

    def __init__(self, scores: Tensor, tolerance: Tensor) -> None:
        self.scores, self.tolerance = scores, tolerance
        self._buffer = torch.empty_like(scores)

    def before(self, value: Tensor, place: Tensor, rows: Tensor | None = None) -> Tensor:
        """(r,) int64, from the score and the index (r,) of a candidate in each row, all of them or ``rows`` (r,)."""
        scores, tolerance = self.scores, self.tolerance
        if rows is not None and len(rows) < len(scores):
            scores, tolerance = scores[rows], tolerance[rows]
        high, low = value + tolerance, value - tolerance
        better, at_least = self._count(torch.gt, scores, high), self._count(torch.ge, scores, low)
        # The candidate itself is among those that score as much: more than one makes a tie.
        tied = (at_least - better > 1).nonzero().squeeze(1)
        if len(tied):
            part = scores[tied]
            index = torch.arange(part.shape[1], device=part.device)
            equal = (part >= low[tied, None]) & (part <= high[tied, None]) & (index < place[tied, None])
            better[tied] += equal.sum(1)
        return better

    def first_of_the_best(self) -> Tensor:
        """(rows,) index of the first candidate that scores as much as the best."""
        low = self.scores.amax(1) - self.tolerance
        return torch.ge(self.scores, low[:, None], out=self._buffer).argmax(1)

    def _count(self, compare: Callable[..., Tensor], scores: Tensor, threshold: Tensor) -> Tensor:
        # Ones in float32: several times as fast as summing booleans.
        ones = compare(scores, threshold[:, None], out=self._buffer[: len(scores)])
        return ones.sum(1, dtype=_sum_type(ones.shape[1])).long()


class _Groups:
    """The texts of each image: ``texts`` (N, R) in ascending order, padded with M; ``sizes`` (N,)."""

    def __init__(self, text_to_image: Tensor, num_images: int) -> None:
        self.sizes = torch.bincount(text_to_image, minlength=num_images)
        if orphans := (self.sizes == 0).nonzero().flatten().tolist():
            raise ValueError(f"{len(orphans)} of {num_images} images have no text, the first is {orphans[0]}")
        order = text_to_image.argsort(stable=True)
        slots = torch.arange(len(order), device=order.device)
        slots -= (self.sizes.cumsum(0) - self.sizes).repeat_interleave(self.sizes)
        self.texts = order.new_full((num_images, int(self.sizes.max())), len(order))
        self.texts[text_to_image[order], slots] = order


def _average_precision(ranks: Tensor, sizes: Tensor) -> Tensor:
    """(rows,) from the ranks (rows, R) of each row's ``sizes`` positives; padded ranks are beyond all others.

    Reference: A Metric Learning Reality Check (arXiv:2003.08505), section 3.2: MAP@R.
    """
    ranks = ranks.sort(1).values
    found = torch.arange(1, ranks.shape[1] + 1, device=ranks.device)
    precision = found / (ranks + 1).double()
    return precision.where(ranks < sizes[:, None], 0).sum(1) / sizes


def _images_before(scores: Tensor, own_scores: Tensor, tolerance: Tensor, owners: Tensor, rows: slice) -> Tensor:
    """(M,) how many images of a tile (rows, M) rank before each text's own image."""
    earlier, here = owners >= rows.stop, (owners >= rows.start) & (owners < rows.stop)
    # An image of lower index wins a tie: where the text's own comes later, as much is enough.
    threshold = torch.where(earlier, own_scores - tolerance, own_scores + tolerance)
    lower = torch.nextafter(threshold, threshold.new_tensor(-torch.inf))
    threshold = torch.where(earlier, lower, threshold)  # so that one comparison is ">=" there and ">" elsewhere
    threshold = threshold.masked_fill(here, torch.inf)
    before = torch.gt(scores, threshold, out=torch.empty_like(scores)).sum(0, dtype=_sum_type(len(scores))).long()
    texts = here.nonzero().squeeze(1)
    if len(texts):
        own, slack, place = own_scores[texts], tolerance[texts], owners[texts] - rows.start
        part = scores[:, texts]
        index = torch.arange(len(scores), device=scores.device)[:, None]
        ahead = (part > own + slack) | ((part >= own - slack) & (index < place))
        before[texts] = (ahead & (index != place)).sum(0)
    return before


def _own_scores(images: Tensor, texts: Tensor, owners: Tensor, max_scores: int) -> Tensor:
    """(M,) of each text with its own image."""
    rows = max(1, max_scores // texts.shape[1])
    parts = zip(texts.split(rows), owners.split(rows), strict=True)
    return torch.cat([torch.linalg.vecdot(text, images[own]) for text, own in parts])


def _tiles(queries: Tensor, candidates: Tensor, max_scores: int) -> Iterator[tuple[slice, Tensor]]:
    """Row ranges of the score matrix and their scores (rows, M), in one buffer that the next tile overwrites."""
    rows = min(len(queries), max(1, max_scores // len(candidates)))
    buffer = queries.new_empty(rows, len(candidates))
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        yield slice(start, start + len(part)), torch.mm(part, candidates.T, out=buffer[: len(part)])


def _finite(what: str, features: Tensor) -> Tensor:
    features = features.float()
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(features)} {what} features are not finite, the first is {bad[0]}")
    return features


def _tolerance(queries: Tensor, candidates: Tensor) -> Tensor:
    """(Q,) by how much a score of each query may be off."""
    return TOLERANCE * queries.norm(dim=1) * candidates.norm(dim=1).amax()


def _sum_type(terms: int) -> torch.dtype:
    """Of a sum of so many ones that must be exact."""
    return torch.float32 if terms < 2**24 else torch.float64

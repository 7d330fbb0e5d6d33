"""Zero-shot classification with class names put into prompt templates.

Reference: CLIP (arXiv:2103.00020), section 3.1.4: a class is the mean of its prompts' features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.evaluation.ranks import MAX_SCORES, label_ranks

PLACEHOLDER = "{c}"
PROMPTS_AT_ONCE = 2048  # enough for full batches, few enough for their features


def build_classifier(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Class weights (C, D): each prompt's feature normalised, averaged over templates, normalised again.

    Prompts are encoded for many classes at a time, each distinct one once; a template listed twice weighs twice.
    Raises ValueError for a template without ``{c}`` and for empty lists.
    """
    if not class_names or not templates:
        raise ValueError(f"need class names and templates, got {len(class_names)} and {len(templates)}")
    for template in templates:
        if PLACEHOLDER not in template:
            raise ValueError(f"template {template!r} lacks the placeholder {PLACEHOLDER} for the class name")
    names = list(dict.fromkeys(class_names))
    at_once = max(1, PROMPTS_AT_ONCE // len(templates))
    groups = [names[start : start + at_once] for start in range(0, len(names), at_once)]
    weights = torch.cat([_class_weights(encode_text, group, templates) for group in groups])
    if len(names) == len(class_names):
        return weights
    place = {name: i for i, name in enumerate(names)}
    return weights[[place[name] for name in class_names]]


def _class_weights(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    prompts = [[template.replace(PLACEHOLDER, name) for template in templates] for name in class_names]
    position = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for row in prompts for p in row))}
    features = F.normalize(encode_text(list(position)).float(), dim=-1)  # (distinct prompts, D)
    indices = torch.tensor([[position[p] for p in row] for row in prompts], device=features.device)
    return F.normalize(F.embedding_bag(indices, features, mode="mean"), dim=-1)  # (C, D)


@dataclass(frozen=True, kw_only=True)
class ZeroShotOutcome:
    """What each picture was taken for."""

    ranks: Tensor  # (N,) of the right class, from 0
    labels: Tensor  # (N,)
    predictions: Tensor  # (N,)

    def rows(self) -> Tensor:
        """(N, 3): label, whether it is the best, whether it is among the best five."""
        return torch.stack([self.labels, self.ranks < 1, self.ranks < 5], dim=1)

    def scores(self, rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
        pictures = weights.sum(-1)  # (...)
        right = weights * rows[:, 1]  # (..., G)
        classes = int(rows[:, 0].max()) + 1
        shape = (*weights.shape[:-1], classes)
        per_class = weights.new_zeros(shape).index_add_(-1, rows[:, 0], weights)
        recalls = weights.new_zeros(shape).index_add_(-1, rows[:, 0], right) / per_class
        return {
            "top1": right.sum(-1) / pictures,
            "top5": (weights * rows[:, 2]).sum(-1) / pictures,
            "mean_per_class_recall": recalls.nanmean(-1),  # of the classes that occur
        }


@dataclass(frozen=True, kw_only=True)
class MultiLabelOutcome:
    """How much each picture fits each class, and whether it shows it."""

    logits: Tensor  # (N, C)
    targets: Tensor  # (N, C) bool

    def rows(self) -> Tensor:
        """(N, 2C): scores, then targets."""
        return torch.cat([self.logits.double(), self.targets.double()], dim=1)

    def scores(self, rows: Tensor, weights: Tensor) -> dict[str, Tensor]:
        logits, targets = rows.chunk(2, dim=1)  # (G, C)
        precisions = [
            _average_precision(logit, target, weights)
            for logit, target in zip(logits.unbind(1), targets.unbind(1), strict=True)
            if target.any()
        ]
        # A resample without any picture of a class says nothing of that class.
        return {"mAP": torch.stack(precisions, dim=-1).nanmean(-1)}


def zero_shot_outcome(
    image_features: Tensor, classifier: Tensor, labels: Tensor, *, max_scores: int = MAX_SCORES
) -> ZeroShotOutcome:
    """What each picture is taken for, from (N, D), (C, D) and (N,). Ties: see :mod:`ranks`."""
    num_classes = len(classifier)
    if labels.shape != (len(image_features),) or len(labels) == 0:
        raise ValueError(f"expected one label per image, got {tuple(labels.shape)} for {len(image_features)} images")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels lie in [{int(labels.min())}, {int(labels.max())}], but there are {num_classes} classes"
        )
    found = label_ranks(image_features, classifier, labels, max_scores=max_scores)
    return ZeroShotOutcome(ranks=found.ranks.cpu(), labels=labels.cpu(), predictions=found.predictions.cpu())


def zero_shot_metrics(image_features: Tensor, classifier: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1, top-5 and mean per-class recall from (N, D), (C, D) and (N,).

    The mean per-class recall is over the classes that occur in ``labels``. With five classes or fewer top-5 is 1 by
    definition.
    """
    outcome = zero_shot_outcome(image_features, classifier, labels)
    rows, counts = torch.unique(outcome.rows(), dim=0, return_counts=True)
    return {name: value.item() for name, value in outcome.scores(rows, counts.double()).items()}


def multi_label_outcome(image_features: Tensor, classifier: Tensor, targets: Tensor) -> MultiLabelOutcome:
    """Scores of pictures that show any number of classes, from (N, D), (C, D) and (N, C) bool."""
    shape = (len(image_features), len(classifier))
    if targets.shape != shape or not targets.any():
        raise ValueError(f"expected targets {shape} with a class that occurs, got {tuple(targets.shape)}")
    logits = (image_features.float() @ classifier.float().T).cpu()
    if not logits.isfinite().all():
        raise ValueError("scores of pictures are not finite: the features hold NaN or infinity")
    return MultiLabelOutcome(logits=logits, targets=targets.cpu().bool())


def multi_label_metrics(image_features: Tensor, classifier: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean average precision over the classes that occur, from (N, D), (C, D) and (N, C) bool."""
    outcome = multi_label_outcome(image_features, classifier, targets)
    rows = outcome.rows()
    return {name: value.item() for name, value in outcome.scores(rows, rows.new_ones(len(rows))).items()}


def _average_precision(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(...) of one class: its precision at each picture that shows it, averaged, from (G,), (G,) and (..., G).

    Pictures with equal scores are one step of the curve: each counts with the precision at the last of them.
    """
    logits, order = logits.sort(descending=True)
    weights = weights[..., order]
    right = weights * targets[order]
    last = torch.searchsorted(-logits, -logits, right=True) - 1  # (G,) of those with the same score
    precision = (right.cumsum(-1) / weights.cumsum(-1))[..., last]
    return (right * precision.nan_to_num()).sum(-1) / right.sum(-1)


def multi_label_chance(targets: Tensor) -> dict[str, float]:
    """About what random scores reach: the share of pictures that show a class, over the classes that occur."""
    shares = targets.double().mean(0)
    return {"mAP": shares[shares > 0].mean().item()}


def zero_shot_chance(num_classes: int) -> dict[str, float]:
    """Expected :func:`zero_shot_metrics` of random scores."""
    return {
        "top1": 1 / num_classes,
        "top5": min(1.0, 5 / num_classes),
        "mean_per_class_recall": 1 / num_classes,
    }

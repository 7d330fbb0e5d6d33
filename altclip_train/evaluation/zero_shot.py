"""Zero-shot classification with class names put into prompt templates.

Reference: CLIP (arXiv:2103.00020), section 3.1.4: a class is the mean of its prompts' features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.evaluation.retrieval import best_positive_ranks

PLACEHOLDER = "{c}"


def build_classifier(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Class weights (C, D): each prompt's feature normalised, averaged over templates, normalised again.

    Every distinct prompt is encoded once, all in one call; a template listed twice weighs twice.
    Raises ValueError for a template without ``{c}`` and for empty lists.
    """
    if not class_names or not templates:
        raise ValueError(f"need class names and templates, got {len(class_names)} and {len(templates)}")
    for template in templates:
        if PLACEHOLDER not in template:
            raise ValueError(f"template {template!r} lacks the placeholder {PLACEHOLDER} for the class name")
    prompts = [[template.replace(PLACEHOLDER, name) for template in templates] for name in class_names]
    position = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for row in prompts for p in row))}
    features = F.normalize(encode_text(list(position)).float(), dim=-1)  # (distinct prompts, D)
    indices = torch.tensor([[position[p] for p in row] for row in prompts], device=features.device)
    return F.normalize(F.embedding_bag(indices, features, mode="mean"), dim=-1)  # (C, D)


def zero_shot_metrics(image_features: Tensor, classifier: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1, top-5 and mean per-class recall from (N, D), (C, D) and (N,).

    The mean per-class recall is over the classes that occur in ``labels``. Of classes with equal scores the
    one with the lower index ranks first. With five classes or fewer top-5 is 1 by definition.
    """
    num_classes = len(classifier)
    if labels.shape != (len(image_features),) or len(labels) == 0:
        raise ValueError(f"expected one label per image, got {tuple(labels.shape)} for {len(image_features)} images")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels lie in [{int(labels.min())}, {int(labels.max())}], but there are {num_classes} classes"
        )
    classes = torch.arange(num_classes, device=labels.device)
    ranks = best_positive_ranks(image_features, classifier, labels, classes)  # (N,)
    right = (ranks < 1).double()
    images = torch.bincount(labels, minlength=num_classes)  # (C,)
    recalls = torch.bincount(labels, weights=right, minlength=num_classes)[images > 0] / images[images > 0]
    return {
        "top1": right.mean().item(),
        "top5": (ranks < 5).double().mean().item(),
        "mean_per_class_recall": recalls.mean().item(),
    }


def zero_shot_chance(num_classes: int) -> dict[str, float]:
    """Expected :func:`zero_shot_metrics` of random scores."""
    return {
        "top1": 1 / num_classes,
        "top5": min(1.0, 5 / num_classes),
        "mean_per_class_recall": 1 / num_classes,
    }

"""Retrieval metrics against hand-counted recalls, a slow obvious version and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from altclip_train.evaluation import retrieval_chance, retrieval_metrics
from altclip_train.evaluation.ranks import retrieval_ranks
from altclip_train.evaluation.retrieval import retrieval_outcome

# Rows are texts, columns images; texts 0 and 1 belong to image 0, 2 to image 1, 3 to image 2.
SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2],  # image 0 is best: rank 0
        [0.3, 0.8, 0.4],  # image 0 is last: rank 2
        [0.1, 0.5, 0.7],  # image 1 is second: rank 1
        [0.2, 0.3, 0.6],  # image 2 is best: rank 0
    ]
)
TEXT_TO_IMAGE = torch.tensor([0, 0, 1, 2])


def features_with_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Image features (N, N) and text features (M, N) whose inner products are ``scores`` (M, N)."""
    return torch.eye(scores.shape[1]), scores


def obvious_metrics(images: Tensor, texts: Tensor, text_to_image: list[int]) -> dict[str, float]:
    """Sorts every query's candidates by (-score, index) and looks for a positive in the first K."""
    scores = (texts @ images.T).tolist()
    num_texts, num_images = len(scores), len(scores[0])
    metrics = {}
    for k in (1, 5, 10):
        found = 0
        for text in range(num_texts):
            order = sorted(range(num_images), key=lambda image: (-scores[text][image], image))
            found += text_to_image[text] in order[:k]
        metrics[f"text_to_image_R@{k}"] = found / num_texts
    for k in (1, 5, 10):
        found = 0
        for image in range(num_images):
            order = sorted(range(num_texts), key=lambda text: (-scores[text][image], text))
            found += image in [text_to_image[text] for text in order[:k]]
        metrics[f"image_to_text_R@{k}"] = found / num_images
    return metrics | {
        "mean_recall": sum(metrics.values()) / 6,
        "image_to_text_mAP@R": obvious_map(scores, text_to_image),
    }


def obvious_map(scores: list[list[float]], text_to_image: list[int]) -> float:
    """Of each image: precision at each of its R texts that is among the best R, divided by R."""
    precisions = []
    for image in range(len(scores[0])):
        order = sorted(range(len(scores)), key=lambda text: (-scores[text][image], text))
        right = [text_to_image[text] == image for text in order]
        positives = sum(right)
        precisions.append(sum(sum(right[: k + 1]) / (k + 1) for k in range(positives) if right[k]) / positives)
    return sum(precisions) / len(precisions)


def random_case(*, images: int, texts: int, width: int, levels: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features with texts spread unevenly over images; ``levels`` > 0 makes small integers, so many ties."""
    generator = torch.Generator().manual_seed(7)
    owners = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    if levels:
        image_features = torch.randint(levels, (images, width), generator=generator).float()
        text_features = torch.randint(levels, (texts, width), generator=generator).float()
    else:
        image_features = torch.randn(images, width, generator=generator)
        text_features = 0.5 * image_features[owners] + torch.randn(texts, width, generator=generator)
    return image_features, text_features, owners


def test_recall_equals_hand_counted_recall() -> None:
    metrics = retrieval_metrics(*features_with_scores(SCORES), TEXT_TO_IMAGE)
    # Text to image: texts 0 and 3 of four are found at once. Image to text: image 0 finds text 0 (0.9),
    # image 1 finds text 1 (0.8, wrong), image 2 finds text 2 (0.7, wrong).
    assert metrics == pytest.approx(
        {
            "text_to_image_R@1": 2 / 4,
            "text_to_image_R@5": 1,
            "text_to_image_R@10": 1,
            "image_to_text_R@1": 1 / 3,
            "image_to_text_R@5": 1,
            "image_to_text_R@10": 1,
            "mean_recall": (1 / 2 + 1 / 3 + 4) / 6,
            # The two texts of image 0 are the best two of column 0. Images 1 and 2 have one each, and find it second.
            "image_to_text_mAP@R": (1 + 0 + 0) / 3,
        }
    )


def test_rank_is_that_of_the_best_positive() -> None:
    images, texts = features_with_scores(SCORES)
    ranks = retrieval_ranks(images, texts, TEXT_TO_IMAGE)
    assert ranks.texts.tolist() == [0, 2, 1, 0]
    # From images: text 0 leads column 0; text 2 is second in column 1, text 3 is second in column 2.
    assert ranks.images.tolist() == [0, 1, 1]


@pytest.mark.parametrize("levels", [0, 2])
def test_metrics_equal_the_obvious_version(levels: int) -> None:
    images, texts, owners = random_case(images=23, texts=57, width=5, levels=levels)
    assert retrieval_metrics(images, texts, owners) == pytest.approx(obvious_metrics(images, texts, owners.tolist()))


@pytest.mark.parametrize("max_scores", [1, 60, 23 * 57])
def test_chunk_size_changes_nothing(max_scores: int) -> None:
    images, texts, owners = random_case(images=23, texts=57, width=5, levels=2)
    whole = retrieval_metrics(images, texts, owners)
    assert retrieval_metrics(images, texts, owners, max_scores=max_scores) == whole


def test_order_of_texts_changes_nothing_without_ties() -> None:
    images, texts, owners = random_case(images=23, texts=57, width=5)
    shuffled = torch.randperm(57, generator=torch.Generator().manual_seed(3))
    assert retrieval_metrics(images, texts[shuffled], owners[shuffled]) == pytest.approx(
        retrieval_metrics(images, texts, owners)
    )


@pytest.mark.parametrize("levels", [0, 2])
def test_recall_equals_torchmetrics(levels: int) -> None:
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    images, texts, owners = random_case(images=23, texts=57, width=5, levels=levels)
    metrics = retrieval_metrics(images, texts, owners)
    scores = texts @ images.T  # (57, 23)
    positive = owners[:, None] == torch.arange(23)
    for direction, ours, target in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        # torchmetrics takes equal scores in no stated order: the rule of ours, written into the scores.
        index = torch.arange(ours.shape[1]).expand_as(ours)
        ordered = ours.double() - 1e-6 * index if levels else ours
        queries = torch.arange(len(ours))[:, None].expand_as(ours)
        for k in (1, 5, 10):
            oracle = retrieval.RetrievalHitRate(top_k=k)(ordered.flatten(), target.flatten(), indexes=queries.flatten())
            assert metrics[f"{direction}_R@{k}"] == pytest.approx(oracle.item(), abs=1e-6)


def test_duplicates_rank_by_index_whatever_the_order_of_summation() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.nn.functional.normalize(torch.randn(40, 96, generator=generator), dim=1)
    images[7] = images[33]  # a picture that is there twice
    texts = images.clone()
    ranks = [retrieval_ranks(images, texts, torch.arange(40), max_scores=size) for size in (1, 200, 1600)]
    for found in ranks:
        assert found.texts.tolist() == [int(number == 33) for number in range(40)]
        assert found.images.tolist() == [int(number == 33) for number in range(40)]


def test_scores_that_float32_cannot_tell_apart_are_equal() -> None:
    last, more = 2**-24, 2**-14  # half a unit in the last place of 0.5, and a thousand units
    scores = torch.tensor([[0.5, 0.5 + 2 * last, 0.4], [0.5, 0.5 + 2 * last, 0.4], [0.5 + more, 0.2, 0.5]])
    # Text 0: its image comes first. Text 1: its image comes second. Text 2: another image is better.
    assert retrieval_ranks(*features_with_scores(scores), torch.arange(3)).texts.tolist() == [0, 1, 1]


def test_median_ranks_count_from_one() -> None:
    outcome = retrieval_outcome(*features_with_scores(SCORES), TEXT_TO_IMAGE)
    assert outcome.median_ranks() == {"text_to_image": 1.5, "image_to_text": 2}  # of 1 3 2 1 and of 1 2 2


def test_collapsed_features_get_no_better_than_chance() -> None:
    metrics = retrieval_metrics(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20))
    assert metrics["text_to_image_R@1"] == 1 / 20
    assert metrics["image_to_text_R@5"] == 5 / 20


def test_features_that_are_not_finite_are_refused() -> None:
    broken = torch.eye(3)
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 text features are not finite, the first is 1"):
        retrieval_metrics(torch.eye(3), broken, torch.arange(3))


def test_image_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 images have no text, the first is 1"):
        retrieval_metrics(torch.eye(3), torch.eye(3), torch.tensor([0, 2, 2]))


def test_text_of_an_unknown_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 3\], expected \[0, 2\]"):
        retrieval_metrics(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]))


def test_chance_equals_the_hypergeometric_by_hand() -> None:
    # Images 0, 1, 2 own 3, 1 and 2 of six texts. With one guess they hit in 3/6, 1/6 and 2/6 of the cases;
    # with five of six texts shown only image 1 can miss, in 1/6 of the cases.
    chance = retrieval_chance(3, torch.tensor([0, 0, 0, 1, 2, 2]))
    assert chance["text_to_image_R@1"] == pytest.approx(1 / 3)
    assert chance["text_to_image_R@5"] == 1
    assert chance["image_to_text_R@1"] == pytest.approx((3 / 6 + 1 / 6 + 2 / 6) / 3)
    assert chance["image_to_text_R@5"] == pytest.approx((1 + 5 / 6 + 1) / 3)
    assert chance["image_to_text_R@10"] == 1


def test_random_features_score_at_chance() -> None:
    generator = torch.Generator().manual_seed(11)
    owners = torch.arange(600) % 200
    metrics = retrieval_metrics(
        torch.randn(200, 16, generator=generator), torch.randn(600, 16, generator=generator), owners
    )
    for name, value in retrieval_chance(200, owners).items():
        trials = 600 if name.startswith("text") else 200
        assert abs(metrics[name] - value) < 5 * math.sqrt(value * (1 - value) / trials), name

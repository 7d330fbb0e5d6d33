"""Zero-shot classification against hand-counted accuracies, a slow obvious version and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from altclip_train.evaluation import build_classifier, zero_shot_chance, zero_shot_metrics
from altclip_train.evaluation.zero_shot import multi_label_metrics, zero_shot_outcome

CODES = {
    "a cat": [2.0, 0.0, 0.0],
    "cat!": [0.0, 5.0, 0.0],
    "a dog": [0.0, 0.0, 1.0],
    "dog!": [0.0, 3.0, 4.0],
}


class CodeBook:
    """Encodes known prompts by a table and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.calls.append(texts)
        return torch.tensor([CODES[text] for text in texts])


def test_class_weight_is_the_normalised_mean_of_normalised_prompts() -> None:
    classifier = build_classifier(CodeBook(), ["cat", "dog"], ["a {c}", "{c}!"])
    # cat: the mean of (1, 0, 0) and (0, 1, 0) is (1/2, 1/2, 0).
    # dog: the mean of (0, 0, 1) and (0, 0.6, 0.8) is (0, 0.3, 0.9).
    expected = torch.tensor([[0.5**0.5, 0.5**0.5, 0.0], [0.0, 0.1**0.5, 0.9**0.5]])
    torch.testing.assert_close(classifier, expected)


def test_template_listed_twice_weighs_twice_but_is_encoded_once() -> None:
    encode = CodeBook()
    classifier = build_classifier(encode, ["cat"], ["a {c}", "{c}!", "{c}!"])
    # (1, 0, 0) + 2 (0, 1, 0), normalised.
    torch.testing.assert_close(classifier, torch.tensor([[0.2**0.5, 0.8**0.5, 0.0]]))
    assert encode.calls == [["a cat", "cat!"]]


def test_classes_with_one_name_get_one_weight() -> None:
    classifier = build_classifier(CodeBook(), ["dog", "cat", "dog"], ["a {c}", "{c}!"])
    assert torch.equal(classifier[0], classifier[2])


def test_template_without_placeholder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"template '\{\} photo' lacks the placeholder \{c\}"):
        build_classifier(CodeBook(), ["cat"], ["a {c}", "{} photo"])


def test_empty_class_list_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        build_classifier(CodeBook(), [], ["{c}"])


def test_metrics_equal_hand_counted_ones() -> None:
    # One row of scores per image over seven classes; the classifier is the identity.
    image_features = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # label 0 is best
            [0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6],  # label 0 is seventh
            [0.7, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],  # label 2 is sixth
            [0.2, 0.1, 0.5, 0.9, 0.6, 0.7, 0.8],  # label 2 is fifth
            [0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6],  # label 2 is best
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9],  # label 6 is best
        ]
    )
    metrics = zero_shot_metrics(image_features, torch.eye(7), torch.tensor([0, 0, 2, 2, 2, 6]))
    # Recalls of the classes that occur: 1/2, 1/3 and 1.
    expected = {"top1": 3 / 6, "top5": 4 / 6, "mean_per_class_recall": (1 / 2 + 1 / 3 + 1) / 3}
    assert metrics == pytest.approx(expected)


def test_of_equal_scores_the_lower_class_wins() -> None:
    metrics = zero_shot_metrics(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
    assert metrics["top1"] == 1 / 2


def test_metrics_equal_torchmetrics() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(9, (61,), generator=generator)
    classifier = torch.randn(9, 4, generator=generator)
    image_features = classifier[labels] + torch.randn(61, 4, generator=generator)
    scores = image_features @ classifier.T
    metrics = zero_shot_metrics(image_features, classifier, labels)
    for name, arguments in {
        "top1": {"average": "micro"},
        "top5": {"average": "micro", "top_k": 5},
        "mean_per_class_recall": {"average": "macro"},
    }.items():
        oracle = classification.MulticlassRecall(num_classes=9, **arguments)(scores, labels)
        assert metrics[name] == pytest.approx(oracle.item()), name


def test_predictions_agree_with_ranks_and_with_the_largest_score() -> None:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(9, (61,), generator=generator)
    image_features, classifier = torch.randn(61, 4, generator=generator), torch.randn(9, 4, generator=generator)
    outcome = zero_shot_outcome(image_features, classifier, labels, max_scores=100)
    assert outcome.predictions.tolist() == (image_features @ classifier.T).argmax(1).tolist()
    assert torch.equal(outcome.ranks == 0, outcome.predictions == labels)
    tied = zero_shot_outcome(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
    assert tied.predictions.tolist() == [0, 0]


def obvious_average_precision(logits: list[float], targets: list[int]) -> float:
    """Precision among all that score at least as much, at each picture that shows the class."""
    precisions = []
    for logit, target in zip(logits, targets, strict=True):
        if target:
            above = [t for other, t in zip(logits, targets, strict=True) if other >= logit]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


@pytest.mark.parametrize("levels", [0, 3])
def test_multi_label_precision_equals_torchmetrics_and_the_obvious_version(levels: int) -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(2)
    targets = torch.rand(47, 5, generator=generator) < 0.3
    if levels:
        image_features = torch.randint(levels, (47, 2), generator=generator).float()
        classifier = torch.randint(levels, (5, 2), generator=generator).float()
    else:
        image_features, classifier = torch.randn(47, 6, generator=generator), torch.randn(5, 6, generator=generator)
    ours = multi_label_metrics(image_features, classifier, targets)["mAP"]
    scores = image_features @ classifier.T
    columns = zip(scores.T.tolist(), targets.T.tolist(), strict=True)
    assert ours == pytest.approx(sum(obvious_average_precision(*column) for column in columns) / 5)
    # Scores in [0, 1], or torchmetrics would send them through a sigmoid, which makes large ones equal.
    shares = (scores.double() - scores.min()) / (scores.max() - scores.min())
    oracle = classification.MultilabelAveragePrecision(num_labels=5)(shares, targets.long())
    assert ours == pytest.approx(oracle.item(), abs=1e-6)


def test_class_without_pictures_is_no_part_of_the_mean() -> None:
    targets = torch.tensor([[True, False], [False, False]])
    assert multi_label_metrics(torch.eye(2), torch.eye(2), targets) == {"mAP": 1}
    with pytest.raises(ValueError, match="a class that occurs"):
        multi_label_metrics(torch.eye(2), torch.eye(2), torch.zeros(2, 2, dtype=torch.bool))


def test_label_without_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels lie in \[0, 4\], but there are 4 classes"):
        zero_shot_metrics(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 4]))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="2 of 2 image features are not finite"):
        zero_shot_metrics(torch.full((2, 3), torch.nan), torch.ones(4, 3), torch.tensor([0, 3]))


def test_chance_is_one_guess_among_the_classes() -> None:
    assert zero_shot_chance(8) == {"top1": 1 / 8, "top5": 5 / 8, "mean_per_class_recall": 1 / 8}
    assert zero_shot_chance(3)["top5"] == 1

"""Bootstrap intervals and paired tests against slow obvious versions, known probabilities and hand counts."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from altclip_train.evaluation.retrieval import RetrievalOutcome, retrieval_outcome
from altclip_train.evaluation.statistics import mcnemar, paired_differences, scores_and_intervals
from altclip_train.evaluation.zero_shot import MultiLabelOutcome, ZeroShotOutcome, zero_shot_metrics, zero_shot_outcome


def retrieval_case(seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """60 images with one to six texts each."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.arange(60).repeat_interleave(torch.arange(60) % 6 + 1)
    images = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return images, images[owners] + noise * torch.randn(len(owners), 6, generator=generator), owners


def test_intervals_are_those_of_pictures_drawn_again_with_their_texts() -> None:
    outcome = retrieval_outcome(*retrieval_case(1))
    scores, intervals = scores_and_intervals(outcome, seed=3)
    texts = [(outcome.text_to_image == picture).nonzero().flatten() for picture in range(60)]
    generator = np.random.default_rng(11)
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(500):
        pictures = generator.integers(60, size=60)
        again = RetrievalOutcome(  # of these pictures, each with all its texts; the candidates and so the ranks stay
            image_ranks=outcome.image_ranks[pictures],
            text_ranks=outcome.text_ranks[torch.cat([texts[picture] for picture in pictures])],
            text_to_image=torch.arange(60).repeat_interleave(torch.tensor([len(texts[one]) for one in pictures])),
            average_precision=outcome.average_precision[pictures],
        )
        for name, value in again.scores(again.rows(), torch.ones(60, dtype=torch.float64)).items():
            drawn[name].append(value.item())
    for name, values in drawn.items():
        assert intervals[name] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=0.035), name
        assert intervals[name][0] <= scores[name] <= intervals[name][1]


def test_same_seed_gives_the_same_interval() -> None:
    outcome = retrieval_outcome(*retrieval_case(1))
    assert scores_and_intervals(outcome, seed=3) == scores_and_intervals(outcome, seed=3)
    assert scores_and_intervals(outcome, seed=3)[1] != scores_and_intervals(outcome, seed=4)[1]


def test_texts_of_one_picture_count_as_one_draw() -> None:
    # Five texts of a picture are all found or all missed: as sure as 100 answers, not as 500.
    owners = torch.arange(100).repeat_interleave(5)
    hits = torch.arange(100) % 2
    outcome = RetrievalOutcome(
        image_ranks=hits, text_ranks=hits[owners], text_to_image=owners, average_precision=torch.zeros(100)
    )
    low, high = scores_and_intervals(outcome)[1]["text_to_image_R@1"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 100**0.5, abs=0.02)


@pytest.mark.parametrize(("pictures", "right"), [(400, 100), (1000, 20)])
def test_interval_of_a_share_is_that_of_the_binomial(pictures: int, right: int) -> None:
    ranks = (torch.arange(pictures) >= right).long()
    outcome = ZeroShotOutcome(ranks=ranks, labels=torch.zeros(pictures, dtype=torch.int64), predictions=ranks)
    draws = np.random.default_rng(0).binomial(pictures, right / pictures, size=100_000) / pictures
    expected = tuple(np.quantile(draws, [0.025, 0.975]))
    assert scores_and_intervals(outcome)[1]["top1"] == pytest.approx(expected, abs=2.1 / pictures)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    generator = torch.Generator().manual_seed(6)
    held = 0
    for _ in range(200):
        ranks = (torch.rand(300, generator=generator) > 0.4).long()
        outcome = ZeroShotOutcome(ranks=ranks, labels=torch.zeros(300, dtype=torch.int64), predictions=ranks)
        low, high = scores_and_intervals(outcome)[1]["top1"]
        held += low <= 0.4 <= high
    assert 181 <= held <= 198  # 190 with a standard deviation of 3


def test_mean_per_class_recall_of_a_resample_leaves_out_what_it_did_not_draw() -> None:
    labels = torch.tensor([0, 0, 1])
    outcome = ZeroShotOutcome(ranks=torch.tensor([0, 1, 0]), labels=labels, predictions=labels)
    weights = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0], [0.0, 1.0, 2.0]]).double()
    found = outcome.scores(outcome.rows(), weights)
    assert found["mean_per_class_recall"].tolist() == [0.75, 1, 0.5]
    assert found["top1"].tolist() == [pytest.approx(2 / 3), 1, pytest.approx(2 / 3)]


def test_scores_are_those_of_the_metrics() -> None:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(9, (61,), generator=generator)
    features, classifier = torch.randn(61, 4, generator=generator), torch.randn(9, 4, generator=generator)
    scores, _ = scores_and_intervals(zero_shot_outcome(features, classifier, labels))
    assert scores == pytest.approx(zero_shot_metrics(features, classifier, labels))


def test_weighted_average_precision_is_that_of_repeated_pictures() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randint(6, (30, 2), generator=generator).float()
    targets = torch.rand(30, 2, generator=generator) < 0.4
    times = torch.randint(4, (30,), generator=generator)
    outcome = MultiLabelOutcome(logits=logits, targets=targets)
    repeated = MultiLabelOutcome(logits=logits.repeat_interleave(times, 0), targets=targets.repeat_interleave(times, 0))
    rows = repeated.rows()
    expected = repeated.scores(rows, torch.ones(len(rows), dtype=torch.float64))["mAP"]
    torch.testing.assert_close(outcome.scores(outcome.rows(), times.double())["mAP"], expected)


def test_paired_difference_sees_what_two_intervals_hide() -> None:
    images, texts, owners = retrieval_case(1)
    first = retrieval_outcome(images, texts, owners)
    better = retrieval_outcome(images, 0.6 * texts + 0.4 * images[owners], owners)
    name = "text_to_image_R@1"
    change = paired_differences(first, better)[name]
    assert change.second - change.first > 0.1
    assert change.low > 0
    assert change.p_value < 0.01
    _, alone = scores_and_intervals(first)
    _, other = scores_and_intervals(better)
    assert change.high - change.low < alone[name][1] - alone[name][0] + other[name][1] - other[name][0]


def test_model_does_not_differ_from_itself() -> None:
    outcome = retrieval_outcome(*retrieval_case(1))
    for change in paired_differences(outcome, outcome).values():
        assert (change.low, change.high, change.p_value) == (0, 0, 1)


def test_models_of_equal_quality_rarely_differ() -> None:
    generator = torch.Generator().manual_seed(9)
    labels = torch.zeros(200, dtype=torch.int64)
    found = 0
    for _ in range(100):
        ranks = (torch.rand(2, 200, generator=generator) > 0.5).long()
        first, second = (ZeroShotOutcome(ranks=one, labels=labels, predictions=one) for one in ranks)
        found += paired_differences(first, second)["top1"].p_value < 0.05
    assert found <= 12  # 5 with a standard deviation of 2.2


def obvious_mcnemar(lost: int, gained: int) -> float:
    total = lost + gained
    tail = sum(Fraction(comb(total, k), 2**total) for k in range(min(lost, gained) + 1))
    return float(min(Fraction(1), 2 * tail))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 3), (1, 9), (30, 12), (700, 560)])
def test_mcnemar_is_the_exact_sign_test(lost: int, gained: int) -> None:
    both = torch.tensor([True] * 5 + [False] * 4)
    first = torch.cat([both, torch.ones(lost, dtype=torch.bool), torch.zeros(gained, dtype=torch.bool)])
    second = torch.cat([both, torch.zeros(lost, dtype=torch.bool), torch.ones(gained, dtype=torch.bool)])
    found = mcnemar(first, second)
    assert (found.lost, found.gained) == (lost, gained)
    assert found.p_value == pytest.approx(obvious_mcnemar(lost, gained), rel=1e-9)

"""The losses against slow, obvious versions."""

import math

import pytest
import torch
import torch.nn.functional as F

from altclip_train import losses
from altclip_train.losses import contrastive_loss, distillation_loss, duplicate_share, sigmoid_loss


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    # 7 pairs then need 3 x 3 tiles, the last ones partial.
    monkeypatch.setattr(losses, "CPU_TILE", 3)
    monkeypatch.setattr(losses, "CPU_ONLY_TILE", 3)


def features(pairs, width, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(pairs, width, generator=generator, dtype=dtype), dim=-1).requires_grad_()


def plain_loss(image, text, logit_scale, ids=None):
    logits = logit_scale.exp() * image @ text.T
    target = torch.eye(len(image), dtype=image.dtype)
    if ids is not None:
        same = (ids[:, None] == ids[None]).to(image.dtype)
        target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_sigmoid_loss(image, text, logit_scale, logit_bias, ids=None):
    logits = logit_scale.exp() * image @ text.T + logit_bias
    same = torch.eye(len(image), dtype=torch.bool) if ids is None else ids[:, None] == ids[None]
    sign = same.to(image.dtype) * 2 - 1
    return torch.log1p(torch.exp(-sign * logits)).sum() / len(image)


# Each loss with its plain form and the scalars that it takes beside logit_scale.
BOTH = pytest.mark.parametrize(
    ("loss", "plain", "scalars"),
    [(contrastive_loss, plain_loss, []), (sigmoid_loss, plain_sigmoid_loss, [-10.0])],
    ids=["softmax", "sigmoid"],
)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@BOTH
@pytest.mark.parametrize("pairs", [1, 2, 7, 12])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("with_ids", [False, True])
def test_tiled_loss_equals_its_plain_form(loss, plain, scalars, pairs, scale, with_ids):
    ids = torch.arange(pairs) % 5 if with_ids else None
    inputs = [features(pairs, 6, 1), features(pairs, 6, 2), scalar(math.log(scale)), *map(scalar, scalars)]
    expected = plain(*inputs, ids)
    expected_gradients = torch.autograd.grad(expected, inputs)
    actual = loss(*inputs, ids=ids)
    gradients = torch.autograd.grad(actual, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10)


@BOTH
def test_gradients_are_those_of_finite_differences(loss, plain, scalars):  # noqa: ARG001
    ids = torch.tensor([4, 8, 4, 1, 8])
    inputs = (features(5, 3, 3), features(5, 3, 4), scalar(1.2), *(scalar(value / 5) for value in scalars))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradcheck(lambda *x: loss(*x, ids=ids), inputs)


@BOTH
def test_a_locked_image_side_gives_the_same_text_gradient(loss, plain, scalars):  # noqa: ARG001
    image, text, trained = features(7, 4, 5), features(7, 4, 6), [scalar(2.0), *map(scalar, scalars)]
    both = torch.autograd.grad(loss(image, text, *trained), [text, *trained])
    locked = torch.autograd.grad(loss(image.detach(), text, *trained), [text, *trained])
    for gradient, wanted in zip(locked, both, strict=True):
        torch.testing.assert_close(gradient, wanted)


@BOTH
def test_loss_stays_finite_and_exact_at_the_clamp_in_fp32(loss, plain, scalars):
    image, text = features(12, 8, 7, torch.float32), features(12, 8, 8, torch.float32)
    inputs = [torch.tensor(value) for value in (math.log(100.0), *scalars)]
    exact = plain(image.double(), text.double(), *(value.double() for value in inputs))
    assert loss(image, text, *inputs).item() == pytest.approx(exact.item(), rel=1e-5)


def test_contrastive_loss_of_pairs_that_agree_is_zero_and_not_less():
    image = features(12, 8, 7, torch.float32)
    for ids in (None, torch.arange(12)):
        assert contrastive_loss(image, image.detach().clone(), torch.tensor(math.log(100.0)), ids=ids).item() >= 0


@BOTH
def test_sigmoid_and_softmax_accumulate_bfloat16_features_in_fp32(loss, plain, scalars):
    image, text = (features(9, 8, seed, torch.float32).bfloat16() for seed in (9, 10))
    inputs = [torch.tensor(value) for value in (3.0, *scalars)]
    exact = plain(image.double(), text.double(), *(value.double() for value in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(image, text, *inputs)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@BOTH
def test_shorter_products_that_a_run_allows_stay_out_of_the_loss(loss, plain, scalars, monkeypatch):  # noqa: ARG001
    seen = []
    tiles = losses._Pairs.tiles
    monkeypatch.setattr(
        losses._Pairs, "tiles", lambda *given: (seen.append(torch.get_float32_matmul_precision()), tiles(*given))[1]
    )
    torch.set_float32_matmul_precision("high")
    try:
        loss(features(4, 3, 1), features(4, 3, 2), scalar(1.0), *map(scalar, scalars)).backward()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]  # forward and backward


@BOTH
def test_a_batch_of_one_tile_gives_the_gradients_of_many_each_time_it_is_asked(loss, plain, scalars, monkeypatch):  # noqa: ARG001
    inputs = [features(7, 4, 5), features(7, 4, 6), scalar(2.0), *map(scalar, scalars)]
    expected = torch.autograd.grad(loss(*inputs), inputs)
    monkeypatch.setattr(losses, "CPU_ONLY_TILE", 7)
    value = loss(*inputs)
    for _ in range(2):  # what was kept must survive the first time
        torch.testing.assert_close(torch.autograd.grad(value, inputs, retain_graph=True), expected)


@BOTH
def test_no_matrix_of_all_pairs_is_saved(loss, plain, scalars):  # noqa: ARG001
    pairs, width = 64, 8
    saved = 0

    def count(tensor):
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss(features(pairs, width, 1), features(pairs, width, 2), scalar(1.0), *map(scalar, scalars))
    # Two feature matrices, two vectors of log-sum-exps, scalars; the features' own normalisation is outside.
    assert saved <= 2 * pairs * width + 2 * pairs + 8


def test_contrastive_loss_refuses_unequal_sides():
    with pytest.raises(ValueError, match=r"image features \(3, 4\) and text features \(2, 4\)"):
        contrastive_loss(features(3, 4, 1), features(2, 4, 1), torch.tensor(1.0))


def test_duplicate_share_counts_pairs_whose_id_repeats():
    assert duplicate_share(torch.tensor([3, 5, 3, 7])).item() == 0.5  # the two threes of four


def test_distillation_loss_is_the_mean_squared_error():
    # (1-0)^2 + (2-0)^2 + 0 + (0-2)^2 = 9 over 4 numbers
    student = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [3.0, 2.0]])
    loss = distillation_loss(student, target)
    assert loss.item() == 9 / 4
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - target) / 4)

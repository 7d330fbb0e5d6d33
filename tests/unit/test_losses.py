"""Both losses against slow, obvious versions."""

import math

import pytest
import torch
import torch.nn.functional as F

from altclip_train import losses
from altclip_train.losses import contrastive_loss, distillation_loss, duplicate_share


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    # 7 pairs then need 3 x 3 tiles, the last ones partial.
    monkeypatch.setattr(losses, "CPU_TILE", 3)


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


@pytest.mark.parametrize("pairs", [1, 2, 7, 12])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("with_ids", [False, True])
def test_contrastive_loss_equals_plain_cross_entropy(pairs, scale, with_ids):
    ids = torch.arange(pairs) % 5 if with_ids else None
    inputs = [
        features(pairs, 6, 1),
        features(pairs, 6, 2),
        torch.tensor(math.log(scale), dtype=torch.float64),
    ]
    inputs[2].requires_grad_()
    expected = plain_loss(*inputs, ids)
    expected_gradients = torch.autograd.grad(expected, inputs)
    actual = contrastive_loss(*inputs, ids=ids)
    gradients = torch.autograd.grad(actual, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-10)


def test_contrastive_loss_gradients_are_those_of_finite_differences():
    logit_scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([4, 8, 4, 1, 8])
    inputs = (features(5, 3, 3), features(5, 3, 4), logit_scale)
    assert torch.autograd.gradcheck(contrastive_loss, inputs)
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, ids=ids), inputs)


def test_contrastive_loss_with_a_locked_image_side_gives_the_same_text_gradient():
    image, text = features(7, 4, 5), features(7, 4, 6)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    both = torch.autograd.grad(contrastive_loss(image, text, scale), [text, scale])
    locked = torch.autograd.grad(contrastive_loss(image.detach(), text, scale), [text, scale])
    for gradient, wanted in zip(locked, both, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_contrastive_loss_stays_finite_and_exact_at_the_clamp_in_fp32():
    image, text = features(12, 8, 7, torch.float32), features(12, 8, 8, torch.float32)
    scale = torch.tensor(math.log(100.0))
    exact = plain_loss(image.double(), text.double(), scale.double())
    assert contrastive_loss(image, text, scale).item() == pytest.approx(exact.item(), rel=1e-5)


def test_contrastive_loss_of_pairs_that_agree_is_zero_and_not_less():
    image = features(12, 8, 7, torch.float32)
    for ids in (None, torch.arange(12)):
        assert contrastive_loss(image, image.detach().clone(), torch.tensor(math.log(100.0)), ids=ids).item() >= 0


def test_contrastive_loss_accumulates_bfloat16_features_in_fp32():
    image, text = (features(9, 8, seed, torch.float32).bfloat16() for seed in (9, 10))
    scale = torch.tensor(3.0)
    exact = plain_loss(image.double(), text.double(), scale.double())
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(image, text, scale)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_contrastive_loss_saves_no_matrix_of_all_pairs():
    pairs, width = 64, 8
    saved = 0

    def count(tensor):
        nonlocal saved
        saved += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        contrastive_loss(features(pairs, width, 1), features(pairs, width, 2), torch.tensor(1.0).double())
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

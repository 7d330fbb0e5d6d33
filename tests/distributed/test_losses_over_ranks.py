"""W ranks give the loss and gradients of one rank that holds all pairs."""

import math

import pytest
import torch
import torch.nn.functional as F

from altclip_train.losses import contrastive_loss, distillation_loss, duplicate_share, sigmoid_loss
from tests.distributed.processes import run_on_ranks

pytestmark = pytest.mark.distributed

# Pairs per rank: equal, unequal, and one rank with a single pair.
SPLITS = [[5, 5], [3, 6], [4, 1, 7], [2, 5, 3, 4]]


def all_features(pairs):
    generator = torch.Generator().manual_seed(pairs)
    draw = lambda: F.normalize(torch.randn(pairs, 6, generator=generator, dtype=torch.float64), dim=-1)  # noqa: E731
    return draw(), draw(), torch.randint(0, 4, (pairs,), generator=generator)


# Each loss with its scalars: logit_scale, and logit_bias where it has one.
LOSSES = {"softmax": (contrastive_loss, [math.log(100.0)]), "sigmoid": (sigmoid_loss, [math.log(100.0), -10.0])}


def gradients(name, image, text, ids, lock_image):
    function, values = LOSSES[name]
    image = image.clone().requires_grad_(not lock_image)
    text = text.clone().requires_grad_()
    scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    loss = function(image, text, *scalars, ids=ids)
    loss.backward()
    image_gradient = torch.zeros_like(image) if image.grad is None else image.grad
    scalar_gradients = torch.stack([scalar.grad for scalar in scalars])
    return {"loss": loss.detach(), "image": image_gradient, "text": text.grad, "scalars": scalar_gradients}


def loss_on_rank(rank, name, split, use_ids, lock_image):
    image, text, ids = all_features(sum(split))
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    result = gradients(name, image[own], text[own], ids[own] if use_ids else None, lock_image)
    return {**result, "duplicates": duplicate_share(ids[own])}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("use_ids", "lock_image"), [(False, False), (True, False), (True, True)])
def test_loss_over_ranks_equals_one_rank(name, split, use_ids, lock_image, tmp_path):
    image, text, ids = all_features(sum(split))
    expected = gradients(name, image, text, ids if use_ids else None, lock_image)
    ranks = run_on_ranks(loss_on_rank, len(split), tmp_path, name, split, use_ids, lock_image)
    for result in ranks:
        torch.testing.assert_close(result["loss"], expected["loss"])
        torch.testing.assert_close(result["duplicates"], duplicate_share(ids))
    # What DDP makes of it: parameter gradients are averaged over ranks. A feature's gradient exists on its
    # own rank alone, so world_size times the exact one averages to the exact one.
    for side in ("image", "text"):
        joined = torch.cat([result[side] for result in ranks]) / len(split)
        torch.testing.assert_close(joined, expected[side])
    torch.testing.assert_close(torch.stack([result["scalars"] for result in ranks]).mean(0), expected["scalars"])


def distillation_on_rank(rank, split):
    student, target, _ = all_features(sum(split))
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    student = student[own].requires_grad_()
    loss = distillation_loss(student, target[own])
    loss.backward()
    return {"loss": loss.detach(), "student": student.grad}


def test_distillation_loss_over_unequal_ranks_equals_one_rank(tmp_path):
    split = [4, 1, 7]
    student, target, _ = all_features(sum(split))
    student.requires_grad_()
    expected = F.mse_loss(student.float(), target.float())
    expected.backward()
    ranks = run_on_ranks(distillation_on_rank, len(split), tmp_path, split)
    for result in ranks:
        torch.testing.assert_close(result["loss"], expected.detach())
    joined = torch.cat([result["student"] for result in ranks]) / len(split)
    torch.testing.assert_close(joined, student.grad)

"""W ranks give the loss and gradients of one rank that holds all pairs."""

import math
from itertools import product

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


# Loss, whether equal ids are positives, whether the image side is locked.
CASES = list(product(LOSSES, [(False, False), (True, False), (True, True)]))


def losses_on_rank(rank, split):
    image, text, ids = all_features(sum(split))
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    results = [
        gradients(name, image[own], text[own], ids[own] if use_ids else None, lock_image)
        for name, (use_ids, lock_image) in CASES
    ]
    return {"results": results, "duplicates": duplicate_share(ids[own])}


@pytest.mark.parametrize("split", SPLITS)
def test_losses_over_ranks_equal_those_of_one_rank(split, tmp_path):
    image, text, ids = all_features(sum(split))
    ranks = run_on_ranks(losses_on_rank, len(split), tmp_path, split)
    for rank in ranks:
        torch.testing.assert_close(rank["duplicates"], duplicate_share(ids))
    for number, (name, (use_ids, lock_image)) in enumerate(CASES):
        expected = gradients(name, image, text, ids if use_ids else None, lock_image)
        results = [rank["results"][number] for rank in ranks]
        for result in results:
            torch.testing.assert_close(result["loss"], expected["loss"])
        # What DDP makes of it: parameter gradients are averaged over ranks. A feature's gradient exists on its
        # own rank alone, so world_size times the exact one averages to the exact one.
        for side in ("image", "text"):
            joined = torch.cat([result[side] for result in results]) / len(split)
            torch.testing.assert_close(joined, expected[side])
        scalars = torch.stack([result["scalars"] for result in results])
        torch.testing.assert_close(scalars.mean(0), expected["scalars"])


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

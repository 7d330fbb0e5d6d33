"""The losses on a GPU against float64 on the CPU, whatever precision the towers have; and the memory that they take."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.losses import GPU_TILE, contrastive_loss, sigmoid_loss

PAIRS = GPU_TILE + 905  # four tiles, none of them square but the first


@pytest.fixture(params=["highest", "high"])
def float32_products(request: pytest.FixtureRequest) -> Iterator[None]:
    """ "high" lets towers multiply in TF32, which the losses must not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    assert torch.get_float32_matmul_precision() == request.param
    torch.set_float32_matmul_precision(before)


def features(seed: int, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(pairs, 48, generator=generator, dtype=torch.float64), dim=-1)
    text = F.normalize(image + 0.3 * torch.randn(pairs, 48, generator=generator, dtype=torch.float64), dim=-1)
    return image, text


def plain_contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    logits = scale.exp() * image @ text.T
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def plain_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(signs * (scale.exp() * image @ text.T + bias)).sum() / len(image)


LOSSES = {
    "contrastive": (contrastive_loss, plain_contrastive, [math.log(100)]),
    "sigmoid": (sigmoid_loss, plain_sigmoid, [math.log(10), -10.0]),
}


@pytest.mark.usefixtures("float32_products")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradients_equal_float64(name: str, autocast: bool):
    ours, plain, scalars = LOSSES[name]
    exact = [t.requires_grad_() for t in (*features(0), *(torch.tensor(s, dtype=torch.float64) for s in scalars))]
    expected = plain(*exact)
    expected.backward()
    moved = [t.detach().float().cuda().requires_grad_() for t in exact]
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        loss = ours(*moved)
    loss.backward()
    torch.testing.assert_close(loss.cpu().double(), expected.detach(), rtol=2e-5, atol=1e-6)
    for value, reference in zip(moved, exact, strict=True):
        error = (value.grad.cpu().double() - reference.grad).norm()
        assert error < 5e-5 * reference.grad.norm() + 1e-9


def test_memory_does_not_grow_with_the_square_of_the_batch():
    image, text = (t.float().cuda().requires_grad_() for t in features(1, 65_536))
    scale = torch.tensor(2.6592, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contrastive_loss(image, text, scale).backward()
    assert torch.cuda.max_memory_allocated() - before < 600e6  # of 17 GB that one matrix would take


def test_embeddings_at_the_clamp_with_equal_pairs_lose_nothing():
    """Rows and columns keep maxima of their own: sums shared by a tile would underflow at a scale of 100."""
    image = features(2)[0].float().cuda()
    image[1] = -image[0]
    loss = contrastive_loss(image, image.clone(), torch.tensor(math.log(100.0), device="cuda"))
    assert torch.isfinite(loss)
    assert loss.item() >= 0

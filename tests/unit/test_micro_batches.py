"""Micro-batches give the features and gradients of the whole batch, and keep little of it."""

import copy

import pytest
import torch

from altclip_train.losses import contrastive_loss
from altclip_train.models import build_text_student, set_dropout
from altclip_train.stages.micro_batches import check_micro_batch, encode_in_micro_batches
from altclip_train.types import PackedTokens

LENGTHS = [5, 3, 9, 4, 7, 3, 6]


@pytest.fixture
def tower():
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return build_text_student(
        student=None, project_dim=8, intermediate_size=32, max_position_embeddings=40, pad_token_id=1, **shape
    ).train()


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(1)
    return PackedTokens.from_lists([torch.randint(4, 40, (n,), generator=generator).tolist() for n in LENGTHS])


def loss_and_gradients(tower, texts, size):
    tower = copy.deepcopy(tower)
    images = torch.randn(len(LENGTHS), 8, generator=torch.Generator().manual_seed(2))
    features = encode_in_micro_batches(tower.encode_packed, texts, size)
    loss = contrastive_loss(images, features, torch.tensor(1.0))
    loss.backward()
    gradients = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    return loss.detach(), features.detach(), gradients


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_features_loss_and_gradients_are_those_of_the_whole_batch(tower, texts, size):
    loss, features, gradients = loss_and_gradients(tower, texts, None)
    in_parts = loss_and_gradients(tower, texts, size)
    torch.testing.assert_close(in_parts[0], loss)
    torch.testing.assert_close(in_parts[1], features)
    assert in_parts[2].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(in_parts[2][name], gradient, rtol=1e-5, atol=1e-6)


def test_dropout_draws_the_same_numbers_when_a_micro_batch_is_computed_again(tower, texts, monkeypatch):
    set_dropout(tower, 0.3)
    torch.manual_seed(3)
    loss, features, gradients = loss_and_gradients(tower, texts, 3)
    # The oracle keeps every graph: nothing is computed twice, so nothing can be drawn anew.
    monkeypatch.setattr("altclip_train.stages.micro_batches.checkpoint", lambda encode, part, **_: encode(part))
    torch.manual_seed(3)
    expected = loss_and_gradients(tower, texts, 3)
    assert torch.equal(features, expected[1])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[2][name], rtol=1e-6, atol=1e-7)
    assert torch.equal(loss, expected[0])


def saved_numbers(encode, texts, size):
    saved = 0

    def count(tensor):
        nonlocal saved
        saved += tensor.numel() if tensor.is_floating_point() and not tensor.requires_grad else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        encode_in_micro_batches(encode, texts, size)
    return saved


def test_states_of_layers_are_not_kept(tower, texts):
    assert saved_numbers(tower.encode_packed, texts, 2) < saved_numbers(tower.encode_packed, texts, None) / 10


def test_without_gradients_nothing_is_computed_twice(tower, texts):
    calls = []
    with torch.no_grad():
        encode_in_micro_batches(lambda part: calls.append(part) or tower.encode_packed(part), texts, 3)
    assert [len(part.lengths) for part in calls] == [3, 3, 1]
    assert [part.max_length for part in calls] == [9, 7, 6]


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match=r"stage\.micro_batch=0"):
        check_micro_batch(0)

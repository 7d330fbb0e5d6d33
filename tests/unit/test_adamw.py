import copy

import pytest
import torch
from torch import nn

from altclip_train.adamw import CHUNK, AdamW, gradient_values
from altclip_train.models.layers import WordEmbedding
from altclip_train.muon import Muon
from altclip_train.optim import parameter_groups, take_gradients_by_rows
from altclip_train.sharding import clip_gradients

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "fused": True}
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}  # a row that is read often: its gradients may be added up in another order


class Tower(nn.Module):
    """Its table is two chunks and a part; few rows are read, some of them often."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = WordEmbedding(2 * CHUNK + 100, 24, padding_idx=1)
        nn.init.normal_(self.table.weight)
        self.out = nn.Linear(24, 8)

    def loss(self, step):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(len(self.table.weight) // 50, (200,), generator=generator) * 50 + step % 3
        return (self.out(self.table(tokens)) - torch.randn(200, 8, generator=generator)).square().mean()


def train(tower, optimizer, steps, *, clip=None):
    for step in steps:
        tower.loss(step).backward()
        clip_gradients(tower.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


def by_rows(tower, kind=AdamW):
    optimizer = kind(parameter_groups(tower, 0.1), **SETTINGS)
    take_gradients_by_rows(tower, optimizer)
    assert tower.table.sparse
    return optimizer


def with_optimizers():
    """Two equal towers: ours with gradients by rows, and torch's with dense ones."""
    ours, theirs = Tower(), Tower()
    return (ours, by_rows(ours)), (theirs, torch.optim.AdamW(parameter_groups(theirs, 0.1), **SETTINGS))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch_with_dense_gradients(fused, clip):
    ours, theirs = Tower(), Tower()
    optimizer = AdamW(parameter_groups(ours, 0.1), **{**SETTINGS, "fused": fused})
    take_gradients_by_rows(ours, optimizer)
    train(ours, optimizer, range(6), clip=clip)
    train(theirs, torch.optim.AdamW(parameter_groups(theirs, 0.1), **{**SETTINGS, "fused": fused}), range(6), clip=clip)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **ROUNDING)


def test_rows_that_are_read_once_step_to_the_same_bits():
    (ours, _), (theirs, _) = both = with_optimizers()
    for tower, optimizer in both:
        for step in range(4):
            tower.table(torch.arange(step, len(tower.table.weight), 7)).sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert ours.table.weight.equal(theirs.table.weight)


def test_rows_without_a_gradient_decay_and_move_by_their_momentum():
    tower = Tower()
    optimizer = by_rows(tower)
    train(tower, optimizer, [0])
    before = tower.table.weight.detach().clone()
    train(tower, optimizer, [1])  # reads no row that step 0 has read
    never_read, read_before = 3, 50
    torch.testing.assert_close(tower.table.weight[never_read], before[never_read] * (1 - 0.01 * 0.1))
    assert not torch.allclose(tower.table.weight[read_before], before[read_before] * (1 - 0.01 * 0.1), atol=1e-4)


@pytest.mark.parametrize(("before", "after"), [(AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW)])
def test_either_goes_on_from_the_state_of_the_other(before, after):
    whole = Tower()
    train(whole, torch.optim.AdamW(parameter_groups(whole, 0.1), **SETTINGS), range(6))
    tower = Tower()
    first = before(parameter_groups(tower, 0.1), **SETTINGS)
    take_gradients_by_rows(tower, first)
    train(tower, first, range(3))
    second = after(parameter_groups(tower, 0.1), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_gradients_by_rows(tower, second)
    assert tower.table.sparse is (after is AdamW)
    train(tower, second, range(3, 6))
    for mine, other in zip(tower.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **ROUNDING)


def test_gradients_of_several_backwards_add_up():
    (ours, _), (theirs, _) = both = with_optimizers()
    for tower, optimizer in both:
        for step in (0, 1, 2, 1, 1, 1):
            tower.loss(step).backward()
        if tower is ours:
            assert len(tower.table.weight.grad._values()) == len(tower.table.weight.grad._indices()[0].unique())
        optimizer.step()
    torch.testing.assert_close(ours.table.weight, theirs.table.weight, **ROUNDING)


@pytest.mark.parametrize("rule", ["amsgrad", "maximize"])
def test_rules_of_a_loaded_state_that_are_torchs_alone_hold_for_tables_too(rule):
    (ours, _), (theirs, _) = both = with_optimizers()
    for tower, optimizer in both:
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            group[rule] = True
        optimizer.load_state_dict(state)
        train(tower, optimizer, range(4))
    torch.testing.assert_close(ours.table.weight, theirs.table.weight, **ROUNDING)


def test_a_gradient_scaler_scales_tables_too():
    (ours, _), (theirs, _) = both = with_optimizers()
    for tower, optimizer in both:
        scaler = torch.amp.GradScaler("cpu")
        for step in range(4):
            scaler.scale(tower.loss(step)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.table.weight, theirs.table.weight, **ROUNDING)


def test_the_norm_is_that_of_the_dense_gradient():
    ours, theirs = Tower(), Tower()
    by_rows(ours)
    ours.loss(0).backward()
    theirs.loss(0).backward()
    assert gradient_values(ours.table.weight).shape[0] <= 200
    torch.testing.assert_close(gradient_values(ours.table.weight).norm(), theirs.table.weight.grad.norm())
    gradient_values(ours.table.weight).mul_(2)
    torch.testing.assert_close(ours.table.weight.grad.to_dense(), 2 * theirs.table.weight.grad)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_step_that_is_not_finite_leaves_weights_and_state_alone(kind):
    tower = Tower()
    optimizer = by_rows(tower, kind)
    train(tower, optimizer, [0])
    before = copy.deepcopy((tower.table.weight.detach(), optimizer.state[tower.table.weight]))
    optimizer.found_inf = torch.ones(())
    tower.table(torch.tensor([7])).sum().backward()
    optimizer.step()
    after = tower.table.weight.detach(), optimizer.state[tower.table.weight]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert tower.table.weight.grad is None


def test_muon_takes_them_too():
    ours, theirs = Tower(), Tower()
    train(ours, by_rows(ours, Muon), range(4))
    train(theirs, Muon(parameter_groups(theirs, 0.1), **SETTINGS), range(4))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
        lambda groups: torch.optim.SGD(groups, lr=0.1),
        lambda groups: AdamW(groups, lr=0.1, amsgrad=True),
    ],
)
def test_an_optimizer_that_does_not_take_them_gets_dense_gradients(make):
    tower = Tower()
    tower.table.sparse = True
    take_gradients_by_rows(tower, make(parameter_groups(tower, 0.1)))
    assert not tower.table.sparse


def test_a_locked_table_is_left_alone():
    tower = Tower()
    tower.table.weight.requires_grad_(False)
    take_gradients_by_rows(tower, AdamW(parameter_groups(tower, 0.1), **SETTINGS))
    assert not tower.table.sparse
    tower.loss(0).backward()
    assert tower.table.weight.grad is None

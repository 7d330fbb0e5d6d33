import copy

import pytest
import torch
from torch import nn

from altclip_train.muon import Muon, orthogonalized
from altclip_train.optim import parameter_groups


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8)

    def forward(self, tokens):
        return self.down(torch.tanh(self.up(self.table(tokens))))


def loss_of(tower, step):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(10, (16,), generator=generator)
    return (tower(tokens) - torch.randn(16, 8, generator=generator)).square().mean()


def train(tower, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(tower, step).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_directions_of_any_size_become_about_equal(shape):
    torch.manual_seed(1)
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u * torch.logspace(0, -2, min(shape)) @ vh  # directions from 1 down to 0.01
    result = orthogonalized(matrix)
    assert torch.linalg.svdvals(result).min() > 0.6
    assert torch.linalg.svdvals(result).max() < 1.25
    across = u.T @ result @ vh.T  # diagonal: the directions stay the same
    assert (across - across.diagonal().diag()).abs().max() < 1e-4
    assert orthogonalized(torch.zeros(3, 3)).equal(torch.zeros(3, 3))


def test_hidden_matrices_step_as_torchs_muon(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # theirs iterates in bfloat16 on a CPU too
    ours, theirs = Tower(), Tower()
    train(ours, Muon(parameter_groups(ours, 0.1), lr=0.02), range(3))
    matrices = [theirs.up.weight, theirs.down.weight]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in theirs.parameters() if all(p is not m for m in matrices)]
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim == 2 else 0.0} for p in rest]
    adamw = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.98), eps=1e-6)
    for step in range(3):
        theirs.zero_grad()
        loss_of(theirs, step).backward()
        muon.step()
        adamw.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_everything_else_steps_as_adamw():
    ours, theirs = Tower(), Tower()
    for tower in (ours, theirs):
        tower.up.requires_grad_(False)
        tower.down.weight.requires_grad_(False)
    settings = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "fused": True}
    train(ours, Muon(parameter_groups(ours, 0.1), **settings), range(5))
    train(theirs, torch.optim.AdamW(parameter_groups(theirs, 0.1), **settings), range(5))
    assert all(mine.equal(other) for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_resumed_run_takes_the_same_steps():
    whole, first = Tower(), Tower()
    train(whole, Muon(parameter_groups(whole, 0.1), lr=0.01), range(6))
    optimizer = Muon(parameter_groups(first, 0.1), lr=0.01)
    train(first, optimizer, range(3))
    second = copy.deepcopy(first)
    resumed = Muon(parameter_groups(second, 0.1), lr=0.5)
    resumed.load_state_dict(optimizer.state_dict())
    train(second, resumed, range(3, 6))
    assert all(mine.equal(other) for mine, other in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_closure_is_called_once_with_gradients():
    tower = Tower()
    calls = []

    def closure():
        calls.append(loss_of(tower, 0))
        calls[-1].backward()
        return calls[-1]

    assert Muon(parameter_groups(tower, 0.1), lr=0.01).step(closure) is calls[0]
    assert len(calls) == 1

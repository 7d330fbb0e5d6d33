import pytest
import torch
from torch import nn

from altclip_train.optim import parameter_groups, warmup_cosine, warmup_linear


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 3)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def factors(schedule, steps, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, **arguments)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_only_matrices_have_weight_decay_and_those_of_linear_layers_are_marked():
    tower = Tower()
    hidden, tables, others, scalars = parameter_groups(tower, 0.2)
    assert hidden == {"params": [tower.linear.weight], "weight_decay": 0.2, "hidden": True}
    assert tables == {"params": [tower.table.weight], "weight_decay": 0.2}
    assert {id(p) for p in others["params"]} == {id(p) for p in (tower.linear.bias, tower.norm.weight, tower.norm.bias)}
    assert others["weight_decay"] == 0
    assert scalars == {"params": [tower.logit_scale], "weight_decay": 0.0}  # apart: it is never sharded


def test_frozen_parameters_are_in_no_group():
    tower = Tower()
    tower.linear.requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(tower, 0.1)) == 4


def test_nothing_trainable_is_an_error():
    with pytest.raises(ValueError, match="no parameter is trainable"):
        parameter_groups(Tower().requires_grad_(False), 0.1)


def test_warmup_linear_rises_then_falls_to_zero():
    # warm-up (1, 2) / 3, peak at step 2, then (6 - step) / 4
    assert factors(warmup_linear, 7, total_steps=6, warmup_steps=2) == pytest.approx(
        [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4, 0]
    )


def test_warmup_cosine_rises_then_falls_to_zero():
    # half a cosine over 4 steps: cos(0), cos(45), cos(90), cos(135), cos(180) degrees
    root = 2**-0.5
    assert factors(warmup_cosine, 6, total_steps=5, warmup_steps=1) == pytest.approx(
        [1 / 2, 1, (1 + root) / 2, 1 / 2, (1 - root) / 2, 0]
    )


@pytest.mark.parametrize("schedule", [warmup_linear, warmup_cosine])
def test_warmup_longer_than_the_run_names_the_key(schedule):
    with pytest.raises(ValueError, match=r"stage\.schedule\.warmup_steps=5"):
        factors(schedule, 1, total_steps=5, warmup_steps=5)

"""The attention kernel of a GPU, which Triton's interpreter runs on a CPU, against torch's attention of each text.

Triton comes with builds of torch for CUDA alone, and its interpreter takes no newest numpy: both come from a folder
made by ``pip install --target DIR --no-deps triton==3.6.0 numpy==2.3.5``, in a process of its own. What compiled code
and real tensor cores do with it, `pytest -m cuda` shows on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.workspace import environment

INTERPRETER = os.environ.get("TRITON_INTERPRETER")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not INTERPRETER, reason="TRITON_INTERPRETER names no folder with Triton"),
]
LENGTHS = [2, 77, 33, 16, 1, 32, 5]  # within a tile, at its edge and beyond
HEADS = 2
SCRIPT = """
import sys, torch
from altclip_train.models.short_attention import short_attention
results = []
for inputs, options in torch.load(sys.argv[1]):
    leaves = [part.requires_grad_() for part in inputs["query, key, value"]]
    out = short_attention(*leaves, **options)
    results.append([out.detach(), *torch.autograd.grad(out, leaves, inputs["gradient"])])
torch.save(results, sys.argv[2])
"""


class Case(NamedTuple):
    width: int  # of a head
    causal: bool
    single: bool  # one query for each text

    @property
    def query_lengths(self) -> list[int]:
        return [1] * len(LENGTHS) if self.single else LENGTHS


# Narrower than a product of tensor cores, no power of two, as in XLM-R.
CASES = [
    Case(8, False, False),
    Case(10, True, False),
    Case(64, True, False),
    Case(64, False, False),
    Case(8, False, True),
]


def inputs_of(case: Case) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(case.width)
    rows = [sum(case.query_lengths), sum(LENGTHS), sum(LENGTHS)]
    drawn = [torch.randn(count, HEADS, case.width, generator=generator) for count in rows]
    return {"query, key, value": drawn, "gradient": torch.randn(drawn[0].shape, generator=generator)}


def options_of(case: Case) -> dict[str, Any]:
    lengths = case.query_lengths, LENGTHS
    ends = tuple(F.pad(torch.tensor(each).cumsum(0), (1, 0)).int() for each in lengths)
    return {"ends": ends, "longest": tuple(map(max, lengths)), "causal": case.causal}


def of_each_text(query: Tensor, key: Tensor, value: Tensor, case: Case) -> Tensor:
    parts = zip(query.split(case.query_lengths), key.split(LENGTHS), value.split(LENGTHS), strict=True)
    attended = []
    for text in parts:
        q, k, v = (part.transpose(0, 1)[None] for part in text)
        attended.append(F.scaled_dot_product_attention(q, k, v, is_causal=case.causal))
    return torch.cat([text[0].transpose(0, 1) for text in attended])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> list[list[Tensor]]:
    """Output and gradients of query, key and value, for each case."""
    given, result = (tmp_path_factory.mktemp("kernel") / name for name in ("given.pt", "result.pt"))
    torch.save([(inputs_of(case), options_of(case)) for case in CASES], given)
    paths = os.pathsep.join([str(INTERPRETER), str(Path(__file__).parents[2])])
    settings = {**environment(), "PYTHONPATH": paths, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", SCRIPT, str(given), str(result)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return torch.load(result)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_and_its_gradients_are_those_of_torch(interpreted: list[list[Tensor]], case: Case):
    inputs = inputs_of(case)
    leaves = [part.requires_grad_() for part in inputs["query, key, value"]]
    query, key, value = leaves
    expected = of_each_text(query, key, value, case)
    gradients = torch.autograd.grad(expected, leaves, inputs["gradient"])
    for found, value in zip(interpreted[CASES.index(case)], [expected, *gradients], strict=True):
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5)

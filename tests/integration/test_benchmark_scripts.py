"""Every comparison runs, on tiny shapes and without its peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.workspace import REPOSITORY, run_command

pytestmark = pytest.mark.slow
TINY = ["--size", "tiny", "--batch", "4", "--steps", "1"]
SCRIPTS = {
    "loss": ["--pairs", "64"],
    "stage_one": TINY,
    "switches": [*TINY, "--only", "dense", "locked", "checkpointing"],
    "stage_two": TINY,
    "zero_shot": ["--size", "tiny", "--classes", "3", "--templates", "4"],
    "evaluation": [
        "--images",
        "12",
        "--texts",
        "30",
        "--pictures",
        "20",
        "--classes",
        "6",
        "--templates",
        "4",
        "--width",
        "8",
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_sides_take_turns_and_leave_every_measurement(name: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / f"{name}.py"), *SCRIPTS[name]]
    done = run_command([*command, "--rounds", "2", "--threads", "1", "--json", str(file)])
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["sides"]
    for side in result["sides"].values():
        assert len(side["rounds"]) == 2
        assert all(measured["seconds"] > 0 for measured in side["rounds"])
    assert "gemm_gflops" in done.stdout


def test_memory_of_the_loader_is_looked_at(tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / "loader_memory.py"
    options = ["--megabytes", "4", "--passes", "4", "--tolerance", "1", "--docs", str(tmp_path)]
    done = run_command([sys.executable, str(script), *options])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loader-memory.png").stat().st_size > 1000


def test_plans_are_made_on_paper() -> None:
    script = REPOSITORY / "benchmarks" / "plan_at_scale.py"
    done = run_command([sys.executable, str(script), "--shards", "100", "--samples-per-shard", "50"])
    assert done.returncode == 0, done.stderr

"""Every comparison runs, on tiny shapes and without its peers; README.md shows what was measured."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.workspace import REPOSITORY, Workspace, run_command

BENCHMARKS = REPOSITORY / "benchmarks"
TINY = ["--size", "tiny", "--batch", "4", "--steps", "1"]
SCRIPTS = {
    "loss": ["--pairs", "64", "128", "--most-compared", "64"],
    "stage_one": TINY,
    "switches": [*TINY, "--only", "plain", "dense", "locked", "checkpointing"],
    "stage_two": TINY,
    "zero_shot": ["--size", "tiny", "--classes", "3", "--templates", "4", "--whole", "4"],
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


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_sides_take_turns_and_leave_every_measurement(name: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *SCRIPTS[name]]
    done = run_command([*command, "--rounds", "2", "--threads", "1", "--json", str(file)])
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["sides"]
    for side in result["sides"].values():
        assert all(measured > 0 for measured in side["seconds"])
        assert side["peak_bytes"] > 0
    assert result["rows"]
    for row in result["rows"]:
        assert f"| {row['what']} | " in done.stdout


@pytest.mark.slow
def test_tokenizers_take_turns(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ["--starter", str(workspace.starter), "--directory", str(tmp_path), "--json", str(file)]
    few = ["--rounds", "1", "--texts", "300", "--before", "300", "--seconds", "0.01"]
    done = run_command([sys.executable, str(BENCHMARKS / "tokenization.py"), *options, *few])
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert rows["clip captions: ours / transformers"]["values"][0] > 0


def test_bfloat16_is_not_timed_where_the_processor_lacks_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sides

    monkeypatch.setattr(sides, "_processor", lambda: ("an old one", {"avx2"}))
    for name in ("stage_one", "stage_two", "loss", "zero_shot"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--dtype", "bfloat16"])
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
        assert "| not applicable |" in capsys.readouterr().out


def test_tables_of_the_page_are_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run_all
    import tables

    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert {place["name"] for place in tables.PLACE.finditer(page)} == {*run_all.RUNS, *run_all.ON_A_GPU}
    assert tables.with_tables(page, tables.load(BENCHMARKS / "results")) == page


def test_an_aim_is_met_by_the_median_from_the_side_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sides
    import tables

    def word(*values: float, **more: object) -> bool | None:
        return tables.met(sides.row("ours", list(values), **more))

    assert word(1.0, 3.0, 9.0, aim=3.0) is True
    assert word(1.0, 2.9, 9.0, aim=3.0) is False
    assert word(7.0, aim=8.0, unit="GB", at_most=True) is True
    assert word(9.0, aim=8.0, unit="GB", at_most=True) is False
    assert word(aim=3.0) is None
    assert word(1.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_all_of_a_step_is_of_some_kind(stage: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "profile_step.py"), "--stage", stage, *TINY, "--rounds", "1"]
    done = run_command([*command, "--threads", "1", "--json", str(file)])
    assert done.returncode == 0, done.stderr
    shares = [row["values"][0] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert min(shares) >= 0


@pytest.mark.slow
def test_loaders_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    few = ["--pictures", "70", "--texts", "600", "--rounds", "1", "--seconds", "0.05"]
    command = [sys.executable, str(BENCHMARKS / "loader.py"), *few, "--directory", str(tmp_path / "data")]
    done = run_command([*command, "--json", str(file)])
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row["values"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert all(value > 0 for values in rows.values() for value in values)
    assert rows["ours / raw"] == pytest.approx([rows["ours, a core"][0] / rows["raw, a core"][0]], rel=2e-3)


@pytest.mark.slow
def test_memory_of_the_loader_is_looked_at(tmp_path: Path) -> None:
    script = BENCHMARKS / "loader_memory.py"
    options = ["--megabytes", "4", "--passes", "4", "--tolerance", "1", "--docs", str(tmp_path)]
    done = run_command([sys.executable, str(script), *options])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "loader-memory.png").stat().st_size > 1000


@pytest.mark.slow
def test_checkpoints_take_turns(tmp_path: Path) -> None:
    options = ["--megabytes", "50", "--rounds", "2", "--directory", str(tmp_path)]
    done = run_command([sys.executable, str(BENCHMARKS / "checkpoint_stall.py"), *options])
    assert done.returncode == 0, done.stderr
    assert "times as long when it waits" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plans_are_made_on_paper() -> None:
    script = BENCHMARKS / "plan_at_scale.py"
    done = run_command([sys.executable, str(script), "--shards", "100", "--samples-per-shard", "50"])
    assert done.returncode == 0, done.stderr

"""`auto` ends in a number: the largest that fits, the same as if it had been given."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_train.models import AltCLIPTextModel
from altclip_train.report.dry_run import dry_run
from altclip_train.training import sizes
from altclip_train.training.memory import available, left_by_groups, peak, reset_peak
from altclip_train.training.sizes import largest_that_fits, settled
from tests.workspace import Run, Workspace

CPU = torch.device("cpu")
CONSTANT, TEXT = 10**9, 10**7  # bytes in the made-up memory below: at rest, and of a text with a graph
STEPS = ["trainer.max_steps=4"]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch):
    """A device with room for so many texts with a graph at a time, counted where the real student encodes them."""
    most = 0
    encode = AltCLIPTextModel.encode_packed

    def counted(self, tokens):
        nonlocal most
        if torch.is_grad_enabled():
            most = max(most, len(tokens.lengths))
        return encode(self, tokens)

    def reset(_: torch.device) -> None:
        nonlocal most
        most = 0

    def limit(texts: int) -> None:
        monkeypatch.setattr(
            sizes, "available", lambda _: math.ceil((CONSTANT + TEXT * (texts + 0.5)) / (1 - sizes.MARGIN))
        )

    monkeypatch.setattr(AltCLIPTextModel, "encode_packed", counted)
    monkeypatch.setattr(sizes, "reset_peak", reset)
    monkeypatch.setattr(sizes, "peak", lambda _: CONSTANT + TEXT * most)
    return limit


def config_of(run: Run) -> dict:
    return yaml.safe_load((run.directory / "config.yaml").read_text())


@given(st.floats(0, 1e6), st.floats(1, 1e4), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 200))
@settings(deadline=None)
def test_of_a_linear_memory_nearly_all_is_used_and_nothing_beyond_it_tried(
    constant: float, each: float, room: int, limit: int, first: int
):
    tried: list[int] = []

    def peak_of(size: int) -> float:
        tried.append(size)
        return constant + each * size

    budget = constant + each * (room + 0.5)
    found = largest_that_fits(peak_of, budget=budget, limit=limit, first=first)
    best = min(room, limit)
    assert found == best or best * 15 / 16 - 1 <= found < best
    # The first two sizes are tried blindly: there is no line through one point.
    assert all(size <= room for size in tried[2:]) or tried[0] > room or tried[1] > room
    assert len(tried) <= 2 * math.log2(limit) + 8
    assert limit > room or found == limit or first > 1


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 40))
@settings(deadline=None)
def test_out_of_memory_halves_the_way_back(room: int, limit: int, first: int):
    """Memory that shows nothing before it ends."""
    found = largest_that_fits(lambda n: 1.0 if n <= room else math.inf, budget=2.0, limit=limit, first=first)
    best = min(room, limit)
    assert found <= best
    assert found >= best * 7 / 8 - 1


@pytest.mark.parametrize("stage", ["teacher", "contrastive"])
def test_a_micro_batch_that_fits_is_found_kept_and_changes_nothing_else(
    workspace: Workspace, memory, stage: str, capsys: pytest.CaptureFixture[str]
):
    start = [f"start={workspace.clip}"] if stage == "contrastive" else []
    if stage == "contrastive":  # its text tower is CLIP's in these tests: count the student's by a run of stage one
        start = [f"start={workspace.train('stage=teacher').model}"]
    overrides = [f"stage={stage}", *start, "data.global_batch_size=12", *STEPS]
    texts = 2 * 12 if stage == "teacher" else 12
    memory(5)
    parted = workspace.train(*overrides, "stage.micro_batch=auto")
    assert config_of(parted)["stage"]["micro_batch"] == parted.stage.micro_batch == 5
    assert "stage.micro_batch=auto: the 12 samples of a device in parts of 5, so" in capsys.readouterr().out
    memory(texts)
    whole = workspace.train(*overrides, "stage.micro_batch=auto")
    assert config_of(whole)["stage"]["micro_batch"] is None
    given = workspace.train(*overrides)
    assert whole.metrics("train/loss") == given.metrics("train/loss")
    assert parted.metrics("train/loss") == pytest.approx(given.metrics("train/loss"), rel=1e-5)


def test_a_run_that_goes_on_keeps_its_number_and_measures_nothing(
    workspace: Workspace, memory, monkeypatch: pytest.MonkeyPatch
):
    directory = workspace.new_directory()
    overrides = ["stage=teacher", "stage.micro_batch=auto", f"resume={directory}"]
    memory(3)
    workspace.train(*overrides[:2], "trainer.max_steps=2", directory=directory)
    monkeypatch.setattr(sizes, "_found", lambda *_: pytest.fail("searched again"))
    run = workspace.train(*overrides, "trainer.max_steps=4", directory=directory)
    assert config_of(run)["stage"]["micro_batch"] == run.stage.micro_batch == 3
    assert list(run.metrics("train/loss")) == [0, 1, 2, 3]


def test_a_batch_that_fits_brings_its_learning_rate_and_is_a_recipe_of_numbers(workspace: Workspace, memory):
    memory(2 * 10)  # a sample of stage one has two texts
    found = workspace.train("stage=teacher", "batch_size=auto", *STEPS)
    config = config_of(found)
    assert (config["batch_size"], config["data"]["global_batch_size"]) == (None, 10)
    rate = config["stage"]["optimizer"]["lr"]
    assert rate == pytest.approx(2.5e-3 * math.sqrt(10 / 8), rel=5e-3)
    numbers = ["data.global_batch_size=10", f"stage.optimizer.lr={rate}"]
    given = workspace.train("stage=teacher", *numbers, *STEPS)
    assert found.metrics("train/loss") == given.metrics("train/loss")
    assert found.learning_rates() == given.learning_rates()


def test_memory_that_ends_is_told_apart_from_other_errors(workspace: Workspace, memory, monkeypatch):
    encode = AltCLIPTextModel.encode_packed

    def ends(self, tokens):
        if torch.is_grad_enabled() and len(tokens.lengths) > 2:
            raise torch.OutOfMemoryError("made up")
        return encode(self, tokens)

    memory(1000)
    monkeypatch.setattr(AltCLIPTextModel, "encode_packed", ends)
    config = workspace.compose(
        *workspace.overrides("stage=teacher", "stage.micro_batch=auto"), directory=workspace.new_directory()
    )
    assert settled(config).stage.micro_batch == 2
    monkeypatch.setattr(AltCLIPTextModel, "encode_packed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        settled(config)


def test_where_not_even_one_sample_fits_it_is_said_what_helps(workspace: Workspace, memory):
    memory(0)
    with pytest.raises(ValueError, match=r"not even one sample of 77 tokens fits into \d+ MiB: set stage.grad"):
        workspace.train("stage=teacher", "stage.micro_batch=auto")


def test_a_dry_run_says_the_number(workspace: Workspace, memory, capsys: pytest.CaptureFixture[str]):
    memory(3)
    overrides = workspace.overrides("stage=teacher", "stage.micro_batch=auto", "dry_run=true")
    dry_run(workspace.compose(*overrides, directory=workspace.new_directory()))
    assert "so stage.micro_batch=3. Measured; 987 MiB may be used" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=64"], "batch_size=64: expected null or auto; data.global_batch_size takes a number"),
        (["data.global_batch_size=auto"], "global_batch_size='auto': expected a number; batch_size=auto finds one"),
        (["stage.micro_batch=atuo"], "micro_batch='atuo': expected a number, auto or null"),
        (["batch_size=auto", "stage.micro_batch=auto"], "choose one"),
        (["stage.micro_batch=auto", "trainer.num_nodes=2"], "use torchrun or srun"),
        (["stage.micro_batch=auto", "strategy=fsdp2"], "with strategy=fsdp2 give a number"),
    ],
)
def test_what_cannot_be_measured_is_refused(workspace: Workspace, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        workspace.train("stage=teacher", *overrides)


def test_the_memory_of_this_process_is_measured():
    reset_peak(CPU)
    before = peak(CPU)
    block = torch.ones(50_000_000)
    after = peak(CPU)
    del block
    assert 190e6 < after - before < 300e6
    assert available(CPU) > after


def test_control_groups_of_both_versions_leave_the_least_of_their_limits(tmp_path: Path):
    new, old = tmp_path / "job/step", tmp_path / "memory/task"
    for directory in (new, old):
        directory.mkdir(parents=True)
        (directory / "memory.stat").write_text("anon 1\ninactive_file 30\ntotal_inactive_file 40\n")
    (new / "memory.max").write_text("max\n")
    (tmp_path / "job/memory.stat").write_text("inactive_file 5\n")
    (tmp_path / "job/memory.max").write_text("900\n")
    (tmp_path / "job/memory.current").write_text("300\n")
    (old / "memory.limit_in_bytes").write_text("1000\n")
    (old / "memory.usage_in_bytes").write_text("700\n")
    membership = tmp_path / "cgroup"
    membership.write_text("9:cpu,cpuacct:/x\n4:memory:/task\n0::/job/step\n")
    assert sorted(left_by_groups(membership, tmp_path)) == [340, 605]
    assert list(left_by_groups(tmp_path / "none", tmp_path)) == []

"""What each rank skips is counted, listed and limited for all of them together."""

from __future__ import annotations

import json

import pytest

from tests.workspace import Run, Workspace

pytestmark = pytest.mark.distributed

DAMAGED = [3, 17, 30, 31]


def overrides(workspace: Workspace, damaged: list[int]) -> list[str]:
    shard = workspace.damaged_texts(damaged, samples=48)
    return ["stage=teacher", f"data.parallel_texts=[{{urls: {shard}}}]", "trainer.max_steps=-1"]


def listed(run: Run) -> list[str]:
    return [json.loads(line)["key"] for line in (run.directory / "bad_samples.jsonl").read_text().splitlines()]


def test_two_ranks_with_loader_processes_count_and_list_what_one_process_does(workspace: Workspace):
    command = [*overrides(workspace, DAMAGED), "trainer.max_epochs=2", "data.max_bad_fraction=0.2"]
    command += ["trainer.log_every_n_steps=4"]  # checkpoints, every second step, lie between
    two = workspace.run(*command, "trainer.devices=2", "data.num_workers=1")
    one = workspace.train(*command)
    assert sorted(listed(two)) == sorted(listed(one)) == [f"{key:04d}" for key in DAMAGED]
    for name in ("data/skipped", "data/skipped/caption_json"):
        assert two.metrics(name) == one.metrics(name)
    steps = two.metrics("data/skipped")
    assert steps[max(steps)] == 8
    ours, theirs = two.checkpoint(10)["bad_samples"], one.checkpoint(10)["bad_samples"]
    assert (ours["drawn"], ours["reasons"]) == (theirs["drawn"], theirs["reasons"])


def test_two_ranks_stop_together_above_the_limit(workspace: Workspace):
    command = [*overrides(workspace, list(range(0, 48, 6))), "trainer.max_epochs=4", "data.max_bad_fraction=0.02"]
    directory = workspace.new_directory()
    done = workspace.run_command(*command, "trainer.devices=2", f"hydra.run.dir={directory}")
    assert done.returncode != 0
    assert "samples cannot be used, more than data.max_bad_fraction=0.02 allows" in done.stderr
    assert not (directory / "model").exists()
    alone = workspace.run_command(*command, f"hydra.run.dir={workspace.new_directory()}")
    line = next(line for line in alone.stderr.splitlines() if "samples cannot be used" in line)
    # The counts of both ranks, those of one process at that step: from the first, and from the other that names it.
    assert done.stderr.count(line.removeprefix("error: ")) == 2

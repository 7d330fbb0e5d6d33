"""A checkpoint is whole or absent, and an older one survives whatever happens to a newer."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.manifest import checkpoints, manifest_of, newest_whole, problem, write_manifest
from altclip_train.training.runs import newest_checkpoint
from tests.workspace import REPOSITORY, Workspace, environment

OLD = {"weights": torch.arange(6.0)}
NEW = {"weights": torch.arange(100_000.0)}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writing past ``limit`` bytes of any file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saved(directory: Path, *steps: int) -> list[Path]:
    files = [directory / f"step_{step:09d}.ckpt" for step in steps]
    for step, file in zip(steps, files, strict=True):
        AtomicCheckpointIO().save_checkpoint({**OLD, "step": step}, file)
    return files


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_failed_write_leaves_the_older_checkpoint_and_nothing_else(tmp_path: Path):
    """Stock Lightning: a full disk destroys the older file of the same name, and leaves the torn one."""
    directory = tmp_path / "checkpoints"
    (file,) = saved(directory, 10)
    for target in (file, directory / "step_000000020.ckpt"):
        with full_disk(20_000), pytest.raises(OSError, match=r"cannot be written|too large"):
            AtomicCheckpointIO().save_checkpoint(NEW, target)
    assert names(directory) == [file.name, manifest_of(file).name]
    assert torch.equal(torch.load(file, weights_only=True)["weights"], OLD["weights"])
    assert newest_checkpoint(tmp_path) == file
    assert problem(file) is None


def test_written_checkpoint_replaces_the_older_one(tmp_path: Path):
    file = tmp_path / "step_000000010.ckpt"
    for state in (OLD, NEW):
        AtomicCheckpointIO().save_checkpoint(state, file)
        assert problem(file) is None
    assert torch.equal(torch.load(file, weights_only=True)["weights"], NEW["weights"])


def test_nothing_is_written_where_it_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stock Lightning: writes until the disk is full."""
    (file,) = saved(tmp_path, 10)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 450_000}))
    with pytest.raises(OSError, match=r"takes 0\.00 GB, the disk has 0\.00 GB left") as caught:
        AtomicCheckpointIO().save_checkpoint(NEW, tmp_path / "step_000000020.ckpt")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == [file.name, manifest_of(file).name]


def test_what_could_not_be_read_back_is_refused_when_it_is_written(tmp_path: Path):
    """Stock Lightning: saves a DictConfig, and fails only when the run is resumed from it."""
    with pytest.raises(TypeError, match="plain values only"):
        AtomicCheckpointIO().save_checkpoint({"config": OmegaConf.create({"a": 1})}, tmp_path / "step_000000010.ckpt")
    assert names(tmp_path) == []


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    """Stock Lightning: the same for local files; it unpickles those of an http(s) address."""
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {canary}",))

    file = tmp_path / "step_000000010.ckpt"
    torch.save({"weights": Payload()}, file)
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(file)
    with pytest.raises(ValueError, match="only read with weights_only=True"):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=False)
    assert not canary.exists()


DAMAGES = {
    "shortened": (lambda file: os.truncate(file, file.stat().st_size - 1), "bytes, its manifest says"),
    "emptied": (lambda file: os.truncate(file, 0), "has 0 bytes"),
    "flipped": (lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]), "differ"),
    "without manifest": (lambda file: manifest_of(file).unlink(), "no manifest"),
    "half a manifest": (lambda file: os.truncate(manifest_of(file), 40), "damaged"),
    "manifest of another kind": (lambda file: manifest_of(file).write_text("[]"), "damaged"),
    "another manifest": (lambda file: manifest_of(file).write_text(json.dumps({"files": {"a": {}}})), "damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, damage: str):
    """Stock Lightning: takes the newest by its date, and fails on it."""
    older, newer = saved(tmp_path, 10, 20)
    harm, reason = DAMAGES[damage]
    harm(newer)
    newest, rejected = newest_whole(tmp_path)
    assert newest == older
    assert list(rejected) == [newer]
    assert reason in rejected[newer]


def test_a_directory_of_shards_is_verified_as_a_whole(tmp_path: Path):
    sharded = tmp_path / "step_000000010.ckpt"
    (sharded / "part").mkdir(parents=True)
    for name in ("metadata", "part/0.distcp", "part/1.distcp"):
        (sharded / name).write_text(name)
    assert newest_whole(tmp_path)[0] is None  # the manifest comes last
    write_manifest(sharded)
    assert newest_whole(tmp_path)[0] == sharded
    (sharded / "part/1.distcp").write_text("part/2.distcp")
    assert "contents of step_000000010.ckpt/part/1.distcp differ" in str(problem(sharded))
    assert problem(sharded, hashes=False) is None
    (sharded / "part/1.distcp").unlink()
    assert "lists" in str(problem(sharded, hashes=False))
    AtomicCheckpointIO().remove_checkpoint(sharded)
    assert names(tmp_path) == []


SHORT = ["data.epoch_samples=32", "trainer.max_steps=-1"]  # epochs of four steps


def test_resume_passes_over_what_is_not_whole_and_clears_it_away(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
):
    run = workspace.train("stage=teacher", *SHORT, "trainer.max_epochs=1")
    directory = run.directory / "checkpoints"
    (directory / "step_000000005.ckpt.incomplete").write_bytes(b"half of a checkpoint")
    os.truncate(directory / "step_000000004.ckpt", 1000)
    more = [*SHORT, "trainer.max_epochs=2", f"resume={run.directory}"]
    resumed = workspace.train("stage=teacher", *more, directory=run.directory)
    printed = capsys.readouterr().out
    assert "warning: step_000000004.ckpt is passed over: step_000000004.ckpt has 1000 bytes, its manifest" in printed
    assert f"resumes from: {directory / 'step_000000002.ckpt'}" in printed
    assert list(resumed.metrics("train/loss")) == list(range(8))
    kept = ["step_000000006.ckpt", "step_000000008.ckpt"]
    assert names(directory) == [name + suffix for name in kept for suffix in ("", ".json")]


def test_resume_without_any_whole_checkpoint_says_so(workspace: Workspace):
    run = workspace.train("stage=teacher")
    for file in checkpoints(run.directory / "checkpoints"):
        file.write_bytes(bytes([1]) * file.stat().st_size)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        workspace.train("stage=teacher", f"resume={run.directory}", directory=run.directory)


def test_the_last_step_is_saved_and_a_run_killed_after_it_is_finished_by_a_resume(workspace: Workspace):
    """Stock Lightning: saves multiples of the interval alone, and does not come to the end of a run without steps."""
    overrides = ["stage=teacher", "trainer.max_steps=3", "data.val_texts=[]"]
    run = workspace.train(*overrides)
    assert [file.name for file in checkpoints(run.directory / "checkpoints")] == [
        "step_000000002.ckpt",
        "step_000000003.ckpt",
    ]
    weights = load_file(run.model / "model.safetensors")
    for file in run.model.iterdir():
        file.unlink()
    run.model.rmdir()
    workspace.train(*overrides, f"resume={run.directory}", directory=run.directory)
    for name, tensor in load_file(run.model / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name


def test_minutes_are_counted_beside_steps(workspace: Workspace):
    often = ["callbacks.checkpoints.every_n_train_steps=1000", "callbacks.checkpoints.keep=null"]
    run = workspace.train("stage=teacher", *often, "callbacks.checkpoints.every_n_minutes=1e-9")
    assert [int(file.stem[5:]) for file in checkpoints(run.directory / "checkpoints")] == [1, 2, 3, 4]


def test_checkpoint_says_what_it_was_made_by(workspace: Workspace):
    run = workspace.train("stage=teacher")
    state = run.checkpoint(4)
    assert state["run"]["config"]["stage"]["optimizer"]["lr"] == 2.5e-3
    assert state["run"]["software"].keys() == {"altclip_train", "commit", "torch"}
    assert state["run"]["world_size"] == len(state["random_state"]) == 1
    assert len(state["tokenizer_sha256"]) == 64


class Failing(AtomicCheckpointIO):
    """A disk that is full for a while."""

    def __init__(self, *, steps: list[int]) -> None:
        self.steps = steps

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with full_disk(1000 if checkpoint["global_step"] in self.steps else resource.RLIM_INFINITY):
            super().save_checkpoint(checkpoint, path, storage_options)


def failing(*steps: int) -> list[str]:
    plugin = f"{{_target_: tests.faults.test_checkpoint_files.Failing, steps: {list(steps)}}}"
    return [f"trainer.plugins=[{plugin}]", "callbacks.checkpoints.every_n_train_steps=1", "trainer.max_steps=6"]


def test_training_goes_on_while_the_disk_is_full(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    """Stock Lightning: the run ends with the error, and without the checkpoint that was there before."""
    run = workspace.train("stage=teacher", *failing(3, 4))
    printed = capsys.readouterr().out
    assert "checkpoint step_000000004.ckpt was not written (2 in a row)" in printed
    assert "step_000000002.ckpt; training goes on" in printed
    assert [int(file.stem[5:]) for file in checkpoints(run.directory / "checkpoints")] == [5, 6]


def test_a_disk_that_stays_full_ends_the_run_and_names_the_last_good_checkpoint(workspace: Workspace):
    directory = workspace.new_directory()
    with pytest.raises(OSError, match=r"step_000000005.ckpt was not written \(3 in a row\).*step_000000002.ckpt"):
        workspace.train("stage=teacher", *failing(3, 4, 5, 6), directory=directory)
    assert newest_whole(directory / "checkpoints") == (directory / "checkpoints" / "step_000000002.ckpt", {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("checked", [True, False])
def test_a_disk_that_is_full_keeps_what_it_has(small_disk: Path, monkeypatch: pytest.MonkeyPatch, checked: bool):
    """Stock Lightning: the older checkpoint of the same name is destroyed."""
    state = {"weights": torch.zeros(500_000)}  # 2 MB
    older = small_disk / "step_000000010.ckpt"
    AtomicCheckpointIO().save_checkpoint(state, older)
    if not checked:
        monkeypatch.setattr("altclip_train.training.checkpoints.check_free_space", lambda *_: None)
    for name in (older.name, "step_000000020.ckpt"):
        with pytest.raises(OSError, match=r"GB left" if checked else r"cannot be written|No space left"):
            AtomicCheckpointIO().save_checkpoint(state, small_disk / name)
    assert newest_whole(small_disk) == (older, {})
    assert names(small_disk) == [older.name, manifest_of(older).name]


WRITER = """
import sys, torch
from pathlib import Path
from altclip_train.training.checkpoints import AtomicCheckpointIO
state, step = {"weights": torch.zeros(500_000)}, int(sys.argv[2])
while True:
    step += 1
    AtomicCheckpointIO().save_checkpoint({**state, "step": step}, Path(sys.argv[1]) / f"step_{step % 3:09d}.ckpt")
    print(step, flush=True)
"""


@pytest.mark.faults
def test_a_kill_inside_the_write_never_costs_a_checkpoint_that_was_done(tmp_path: Path):
    """Twenty kills at moments spread over the write. Stock Lightning: 5 of 5 are torn where TMPDIR is another disk."""
    chance, done, inside = random.Random(0), 0, 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(done)]
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            started = time.perf_counter()
            for _ in range(2):
                done = int(writer.stdout.readline())
                seconds, started = time.perf_counter() - started, time.perf_counter()
            time.sleep(chance.uniform(0, seconds))
            writer.kill()
            printed = writer.stdout.read().split()
        done = int(printed[-1]) if printed else done
        inside += any(name.endswith(".incomplete") for name in names(tmp_path))
        whole = [torch.load(f, weights_only=True)["step"] for f in checkpoints(tmp_path) if problem(f) is None]
        assert max(whole) >= done
        assert len(whole) >= 2  # at most the one that was being replaced
    assert inside >= 5

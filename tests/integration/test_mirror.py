"""A run whose checkpoints are copied elsewhere goes on from there on a machine that has nothing of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from altclip_train.data.urls import RemoteUrl
from altclip_train.errors import Unreachable
from altclip_train.training import mirror
from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.manifest import checkpoints, newest_whole
from altclip_train.training.mirror import Mirror, fetch_run
from altclip_train.training.runs import run_directory
from altclip_train.training.signals import StoppedBySignal
from tests.faults.injections import inject
from tests.workspace import Workspace

ROOT = "memory://bucket/runs"
OVERRIDE = f"callbacks.checkpoints.mirror={ROOT}"


@pytest.fixture(autouse=True)
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def save(run: Path, step: int) -> Path:
    path = run / "checkpoints" / f"step_{step:09d}.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, path)
    return path


def run_with_facts(directory: Path) -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    for name in mirror.FACTS:
        (directory / name).write_text("{}")
    return directory


def fetched_step(tmp_path: Path, name: str) -> int:
    run = fetch_run(RemoteUrl(f"{ROOT}/run"), tmp_path / name)
    newest, rejected = newest_whole(run / "checkpoints")
    assert newest is not None
    assert not rejected or newest.name < min(path.name for path in rejected)
    return torch.load(newest, weights_only=True)["step"]


def test_a_run_goes_on_from_its_mirror_as_if_it_had_its_own_files(
    workspace: Workspace, tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]
):
    options = ["stage=teacher", "trainer.max_steps=6"]
    unbroken = workspace.train(*options)
    first = workspace.new_directory()
    stop = inject("Send", [3], signal=signal.SIGTERM)
    with pytest.raises(StoppedBySignal):
        workspace.train(*options, stop, OVERRIDE, "callbacks.checkpoints.keep=1", directory=first)
    url = f"{ROOT}/{first.name}"
    assert f"mirror: {url}" in capsys.readouterr().out
    kept = [f"{first.name}/checkpoints/step_000000004.ckpt{suffix}" for suffix in ("", ".json")]
    names = [file.removeprefix("/bucket/runs/") for file in memory.find("/bucket")]
    assert sorted(names) == sorted([*kept, *(f"{first.name}/{fact}" for fact in mirror.FACTS)])
    for name in kept:
        assert memory.cat(f"/bucket/runs/{name}") == (first.parent / name).read_bytes()

    directory = Path(run_directory(str(tmp_path), "teacher", url))
    assert directory == tmp_path / "teacher" / first.name
    resumed = workspace.train(*options, f"resume={directory}", directory=directory)
    assert list(resumed.metrics("train/loss")) == [4, 5]
    for name, weights in unbroken.checkpoint(6)["state_dict"].items():
        assert torch.equal(resumed.checkpoint(6)["state_dict"][name], weights), name
    assert (directory / "model" / "config.json").is_file()


def test_a_place_that_cannot_be_written_ends_the_run_before_its_first_step(workspace: Workspace):
    with pytest.raises(ModuleNotFoundError, match="pip install gcsfs"):
        workspace.train("stage=teacher", "callbacks.checkpoints.mirror=gs://bucket/runs")


@pytest.mark.parametrize("root", ["/a/directory", "s3://bucket/runs?key=CANARY", "https://x/y"])
def test_what_is_no_plain_url_is_refused(tmp_path: Path, root: str):
    with pytest.raises(ValueError, match="expected a url that takes files") as caught:
        Mirror(tmp_path, root)
    assert "CANARY" not in str(caught.value)


def test_training_goes_on_without_a_copy(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: Any) -> None:
        raise Unreachable("injected")

    monkeypatch.setattr(Mirror, "copy", fail)
    run = workspace.train("stage=teacher", OVERRIDE)
    assert "warning: step_000000002.ckpt is not copied to memory://bucket/runs/" in capsys.readouterr().out
    assert len(checkpoints(run.directory / "checkpoints")) == 2


def test_wherever_a_copy_breaks_off_a_whole_checkpoint_can_be_fetched(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
):
    run = run_with_facts(tmp_path / "run")
    copies, calls = Mirror(run, ROOT), 0
    copies.begin()
    first, second = save(run, 10), save(run, 20)
    names = ("upload", "remove", "read_file", "list_urls")
    originals = {name: getattr(mirror, name) for name in names}

    def broken_at(last: int) -> None:
        def limited(name: str) -> Any:
            def call(*arguments: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > last:
                    raise Unreachable("injected")
                return originals[name](*arguments)

            return call

        for name in names:
            monkeypatch.setattr(mirror, name, limited(name))

    found = []
    for last in range(20):
        for name, original in originals.items():
            monkeypatch.setattr(mirror, name, original)
        memory.rm("/", recursive=True)
        copies.begin()
        copies.copy(first, keep=1)
        calls = 0
        broken_at(last)
        try:
            copies.copy(second, keep=1)
            whole = True
        except Unreachable:
            whole = False
        for name, original in originals.items():
            monkeypatch.setattr(mirror, name, original)
        found.append(fetched_step(tmp_path, str(last)))
        if whole:
            break
    assert found == sorted(found)
    assert set(found) == {10, 20}
    assert whole
    assert [url.name for url in mirror._manifests(copies.url, copies.patience)] == ["step_000000020.ckpt.json"]


@pytest.mark.parametrize("damage", ["data", "manifest", "gone"])
def test_a_damaged_copy_is_passed_over_for_the_one_before(
    tmp_path: Path, memory: Any, damage: str, capsys: pytest.CaptureFixture[str]
):
    run = run_with_facts(tmp_path / "run")
    copies = Mirror(run, ROOT)
    copies.begin()
    for step in (10, 20):
        copies.copy(save(run, step), keep=None)
    newest = "/bucket/runs/run/checkpoints/step_000000020.ckpt"
    if damage == "data":
        memory.pipe_file(newest, b"x" * memory.size(newest))
    elif damage == "manifest":
        memory.pipe_file(f"{newest}.json", b"{")
    else:
        memory.rm_file(newest)
    assert fetched_step(tmp_path, "fetched") == 10
    assert "warning: step_000000020.ckpt of memory://bucket/runs/run is passed over" in capsys.readouterr().out


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, memory: Any):
    for name in ("../../../stolen", "/stolen", "step_000000010.ckpt/../../stolen"):
        manifest = {"files": {name: {"bytes": 1, "sha256": ""}}}
        memory.pipe_file("/bucket/runs/run/checkpoints/step_000000010.ckpt.json", json.dumps(manifest).encode())
        memory.pipe_file("/bucket/runs/run/checkpoints/stolen", b"x")
        with pytest.raises(FileNotFoundError, match="no whole checkpoint below"):
            fetch_run(RemoteUrl(f"{ROOT}/run"), tmp_path / "deep" / "er")
    assert not list(tmp_path.rglob("stolen"))


def test_what_is_here_already_is_not_fetched_again(tmp_path: Path, memory: Any):
    run = run_with_facts(tmp_path / "run")
    copies = Mirror(run, ROOT)
    copies.begin()
    copies.copy(save(run, 10), keep=None)
    assert fetched_step(tmp_path, "there") == 10
    memory.rm_file("/bucket/runs/run/checkpoints/step_000000010.ckpt")
    assert fetched_step(tmp_path, "there") == 10


def test_a_file_url_is_a_mirror_too(tmp_path: Path):
    run = run_with_facts(tmp_path / "run")
    copies = Mirror(run, f"file://{tmp_path}/other")
    copies.begin()
    copies.copy(save(run, 10), keep=1)
    assert newest_whole(fetch_run(RemoteUrl(f"file://{tmp_path}/other/run"), tmp_path / "there") / "checkpoints")[0]

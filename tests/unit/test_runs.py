import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from altclip_train.training.manifest import write_manifest
from altclip_train.training.runs import (
    Description,
    check_same,
    describe_run,
    newest_checkpoint,
    newest_teacher_run,
    point_latest_to,
    run_directory,
    start_from,
)


@pytest.fixture
def weights(tmp_path):
    """Three model directories with different contents."""
    for name in "abc":
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text(f'{{"name": "{name}"}}')
    return tmp_path / "weights"


def make_run(outputs, name, date, *, stage="teacher", clip=None, student=None, finished=True, steps=()):
    run = outputs / name / date
    describe_run(run, Description(stage=stage, clip=clip and str(clip), student=student, start=None))
    for step in steps:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / f"step_{step:09d}.ckpt").touch()
        write_manifest(run / "checkpoints" / f"step_{step:09d}.ckpt")
    if finished:
        (run / "model").mkdir()
        (run / "model" / "config.json").write_text("{}")
    return run


@pytest.fixture(autouse=True)
def fresh_directories():
    run_directory.cache_clear()


def test_a_new_run_gets_a_dated_directory_that_stays_the_same(tmp_path):
    first = run_directory(str(tmp_path), "teacher", None)
    assert first.startswith(str(tmp_path / "teacher" / "20"))
    assert run_directory(str(tmp_path), "teacher", None) == first


def test_resume_auto_takes_the_newest_unfinished_run(tmp_path):
    make_run(tmp_path, "teacher", "2026-01-01_00-00-00", finished=False, steps=[5])
    wanted = make_run(tmp_path, "teacher", "2026-01-02_00-00-00", finished=False, steps=[5, 20])
    make_run(tmp_path, "teacher", "2026-01-03_00-00-00", steps=[50])
    make_run(tmp_path, "teacher", "2026-01-04_00-00-00", finished=False)  # killed before its first checkpoint
    assert run_directory(str(tmp_path), "teacher", "auto") == str(wanted)
    assert newest_checkpoint(wanted).name == "step_000000020.ckpt"


def test_resume_auto_without_an_unfinished_run_starts_a_new_one(tmp_path):
    make_run(tmp_path, "teacher", "2026-01-03_00-00-00", steps=[50])
    assert run_directory(str(tmp_path), "teacher", "auto") != str(tmp_path / "teacher" / "2026-01-03_00-00-00")


def test_resume_of_a_directory_without_checkpoint_is_an_error(tmp_path):
    run = make_run(tmp_path, "teacher", "2026-01-03_00-00-00", finished=False)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*resume=auto"):
        run_directory(str(tmp_path), "teacher", str(run))


def test_contrastive_starts_from_the_newest_finished_teacher_run(tmp_path):
    make_run(tmp_path, "teacher", "2026-01-01_00-00-00")
    wanted = make_run(tmp_path, "altclip_teacher", "2026-01-02_00-00-00")
    make_run(tmp_path, "teacher", "2026-01-03_00-00-00", finished=False)
    make_run(tmp_path, "contrastive", "2026-01-04_00-00-00", stage="contrastive")
    assert newest_teacher_run(str(tmp_path), None, None) == str(wanted / "model")


def test_contrastive_without_a_teacher_run_names_the_command_to_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Run `python train.py stage=teacher` first"):
        newest_teacher_run(str(tmp_path), None, None)


@pytest.mark.parametrize(("clip", "student", "key"), [("b", None, "clip"), (None, None, "clip"), ("a", "c", "student")])
def test_contrastive_refuses_a_teacher_run_made_from_other_weights(tmp_path, weights, clip, student, key):
    make_run(tmp_path, "teacher", "2026-01-01_00-00-00", clip=weights / "a")
    assert newest_teacher_run(str(tmp_path), str(weights / "a"), None)
    with pytest.raises(ValueError, match=f"was made with {key}="):
        newest_teacher_run(str(tmp_path), clip and str(weights / clip), student and str(weights / student))


@pytest.mark.parametrize("file", ["config.json", "ViT-L-14.pt", "bpe_simple_vocab_16e6.txt.gz"])
def test_contrastive_refuses_a_teacher_run_whose_clip_was_replaced_since(tmp_path, weights, file):
    make_run(tmp_path, "teacher", "2026-01-01_00-00-00", clip=weights / "a")
    (weights / "a" / file).write_text("{}")
    with pytest.raises(ValueError, match="its files have changed since"):
        newest_teacher_run(str(tmp_path), str(weights / "a"), None)


def test_resume_refuses_a_run_made_from_something_else(tmp_path, weights):
    run = make_run(tmp_path, "teacher", "2026-01-01_00-00-00", clip=weights / "a")
    same = Description(stage="teacher", clip=str(weights / "a"), student=None, start=None)
    check_same(run, same)
    for change in ({"clip": str(weights / "b")}, {"stage": "contrastive"}, {"start": "elsewhere"}):
        with pytest.raises(ValueError, match=f"was started with {next(iter(change))}="):
            check_same(run, replace(same, **change))
    (weights / "a" / "model.safetensors").write_text("other weights")
    with pytest.raises(ValueError, match="was started with clip="):
        check_same(run, same)


def test_start_from_takes_a_given_directory_as_it_is(tmp_path):
    assert start_from("some/model", str(tmp_path), None, None) == "some/model"
    assert start_from(None, str(tmp_path), None, None) is None


def test_latest_moves_to_the_newest_finished_run(tmp_path):
    for date in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        point_latest_to(make_run(tmp_path, "teacher", date))
    assert (tmp_path / "teacher" / "latest").resolve().name == "2026-01-02_00-00-00"
    assert json.loads((tmp_path / "teacher" / "latest" / "run.json").read_text())["stage"] == "teacher"


def test_weights_of_a_hub_id_are_hashed_as_those_of_a_directory(tmp_path, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub = SimpleNamespace(snapshot_download=lambda repo_id, allow_patterns: str(weights / repo_id.partition("/")[2]))  # noqa: ARG005
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    run = make_run(tmp_path / "outputs", "teacher", "2026-01-01", clip="org/a")
    same = Description(stage="teacher", clip=str(weights / "a"), student=None, start=None)
    check_same(run, same)
    with pytest.raises(ValueError, match="was started with clip=org/a, this command has clip=org/b"):
        check_same(run, replace(same, clip="org/b"))

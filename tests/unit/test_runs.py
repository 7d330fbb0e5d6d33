import json

import pytest

from altclip_train.training.runs import (
    describe_run,
    newest_checkpoint,
    newest_teacher_run,
    point_latest_to,
    run_directory,
    start_from,
)


def make_run(outputs, name, date, *, stage="teacher", clip="clips/a", student=None, finished=True, steps=()):
    run = outputs / name / date
    describe_run(run, {"stage": stage, "clip": clip, "student": student})
    for step in steps:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / f"step_{step:09d}.ckpt").touch()
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
    assert newest_teacher_run(str(tmp_path), "clips/a", None) == str(wanted / "model")


def test_contrastive_without_a_teacher_run_names_the_command_to_run_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Run `python train.py stage=teacher` first"):
        newest_teacher_run(str(tmp_path), "clips/a", None)


@pytest.mark.parametrize(("clip", "student", "key"), [("clips/b", None, "clip"), ("clips/a", "xlmr", "student")])
def test_contrastive_refuses_a_teacher_run_made_from_other_weights(tmp_path, clip, student, key):
    make_run(tmp_path, "teacher", "2026-01-01_00-00-00")
    with pytest.raises(ValueError, match=f"was made with {key}="):
        newest_teacher_run(str(tmp_path), clip, student)


def test_start_from_takes_a_given_directory_as_it_is(tmp_path):
    assert start_from("some/model", str(tmp_path), "clips/a", None) == "some/model"
    assert start_from(None, str(tmp_path), "clips/a", None) is None


def test_latest_moves_to_the_newest_finished_run(tmp_path):
    for date in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        point_latest_to(make_run(tmp_path, "teacher", date))
    assert (tmp_path / "teacher" / "latest").resolve().name == "2026-01-02_00-00-00"
    assert json.loads((tmp_path / "teacher" / "latest" / "run.json").read_text())["stage"] == "teacher"

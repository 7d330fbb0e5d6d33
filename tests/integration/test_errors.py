"""User mistakes: a short last line that names the key or file and what to do, and an exit code."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import train
from altclip_train import evaluate
from altclip_train.command import run_main
from tests.workspace import TrainedRun, Workspace

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Hydra configures logging for a whole process: put it back."""
    loggers = [logging.getLogger(), logging.getLogger("lightning.pytorch"), logging.getLogger("hydra")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:], logger.level = handlers, level
    GlobalHydra.instance().clear()


@pytest.fixture
def fails(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run the command in this process, see it fail, and return what it prints to the error stream."""

    def run(*overrides: str, tiny: bool = True, place: bool = True) -> str:
        arguments = workspace.overrides(*overrides) if tiny else list(overrides)
        arguments += [f"hydra.run.dir={workspace.new_directory()}"] if place else []
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run_main(train.main, train.CONFIGS, "train")
        printed = capsys.readouterr().err
        code = exit_.value.code
        # Python prints a code that is a message and ends with 1.
        assert code not in (0, None)
        message = printed + code if isinstance(code, str) else printed
        assert "Traceback" not in message
        assert len(message.splitlines()) < 30
        return message

    return run


@pytest.fixture(scope="module")
def taught(workspace: Workspace) -> TrainedRun:
    return workspace.train("stage=teacher", "trainer.max_steps=2")


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("xlmr")
    (directory / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    return directory


def test_no_stage_lists_the_stages(fails: Fails):
    message = fails(tiny=False)
    assert "stage=" in message
    assert all(stage in message for stage in ("teacher", "contrastive"))


def test_unknown_stage_lists_the_stages(fails: Fails):
    message = fails("stage=techer", tiny=False)
    assert "techer" in message
    assert all(stage in message for stage in ("teacher", "contrastive"))


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainer.devcies=2", "'devices'"),
        ("stage.optimizer.Lr=1", "'lr'"),
        ("data.global_batch_sise=2", "'global_batch_size'"),
        ("cilp=somewhere", "'clip'"),
    ],
)
def test_mistyped_key_suggests_the_nearest(fails: Fails, override: str, meant: str):
    message = fails("stage=teacher", override)
    assert f"did you mean {meant}?" in message
    assert override.partition("=")[0].rpartition(".")[2] in message


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("trainer.max_steps=abc", "trainer.max_steps='abc'", "int"),
        ("stage.weight_decay=high", "stage.weight_decay='high'", "float"),
        ("stage.schedule.warmup_steps=0.5", "stage.schedule.warmup_steps=0.5", "int"),
        ("data.max_length=null", "data.max_length=None", "int"),
    ],
)
def test_value_of_the_wrong_type_names_key_value_and_type(fails: Fails, override: str, key: str, expected: str):
    message = fails("stage=teacher", override)
    assert message.startswith("error: ")
    assert key in message
    assert expected in message


def test_logging_every_zero_steps_is_refused_before_training(fails: Fails):
    assert "trainer.log_every_n_steps=0: expected at least 1" in fails("stage=teacher", "trainer.log_every_n_steps=0")


def test_added_key_that_no_constructor_takes_names_the_constructor(fails: Fails):
    message = fails("stage=teacher", "+stage.temperature=1")
    assert "stage.temperature is not taken by altclip_train.stages.TeacherLearning" in message


def test_missing_shard_names_the_pattern_and_the_directory(fails: Fails, tmp_path: Path):
    message = fails("stage=teacher", f"data.parallel_texts=[{{urls: {tmp_path}/nothing-*.tar}}]")
    assert message.startswith("error: ")
    assert f"{tmp_path}/nothing-*.tar" in message


def test_source_without_samples_is_named(fails: Fails, tmp_path: Path):
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    message = fails("stage=teacher", f"data.parallel_texts=[{{urls: {tmp_path}/empty.tar, name: mine}}]")
    assert "'mine' has no samples" in message


def test_mistyped_key_of_a_source_suggests_the_nearest(fails: Fails):
    message = fails("stage=teacher", "data.parallel_texts=[{url: x.tar}]")
    assert "did you mean 'urls'?" in message


def test_batch_larger_than_an_epoch_names_both(fails: Fails):
    message = fails("stage=teacher", "data.epoch_samples=4")
    assert "data.global_batch_size" in message
    assert "epoch of 4 samples" in message


@pytest.mark.parametrize("kind", ["xlmr", "altclip", "missing"])
def test_clip_of_another_kind_is_refused(fails: Fails, xlmr: Path, taught: TrainedRun, kind: str, tmp_path: Path):
    directory = {"xlmr": xlmr, "altclip": taught.model, "missing": tmp_path / "nowhere"}[kind]
    found = {"xlmr": "'xlm-roberta'", "altclip": "'altclip'", "missing": "is not a directory"}[kind]
    message = fails("stage=teacher", f"clip={directory}")
    assert message.startswith("error: ")
    assert str(directory) in message
    assert found in message


def test_start_of_another_kind_is_refused(fails: Fails, xlmr: Path):
    message = fails("stage=contrastive", f"start={xlmr}")
    assert f"{xlmr} holds a model of type 'xlm-roberta'" in message
    assert "expected 'altclip' or 'clip'" in message


def test_student_made_for_a_teacher_of_another_width_is_refused(
    fails: Fails, workspace: Workspace, taught: TrainedRun, tmp_path: Path
):
    wider = workspace.build_clip(tmp_path / "wider", hidden_size=28)
    message = fails("stage=teacher", f"clip={wider}", f"student={taught.model}")
    assert "projects to 20" in message
    assert "width is 28" in message


def test_student_without_a_sentencepiece_model_is_named(fails: Fails, taught: TrainedRun, tmp_path: Path):
    student = tmp_path / "student"
    shutil.copytree(taught.model, student, ignore=shutil.ignore_patterns("sentencepiece*", "tokenizer.json"))
    message = fails("stage=teacher", f"student={student}")
    assert message.startswith("error: ")
    assert str(student) in message
    assert "sentencepiece.bpe.model" in message


def test_contrastive_without_a_teacher_run_names_the_command_to_run_first(fails: Fails, tmp_path: Path):
    message = fails("stage=contrastive", f"outputs={tmp_path}")
    assert message.startswith("error: ")
    assert "python train.py stage=teacher" in message


def test_teacher_run_of_another_clip_is_refused(fails: Fails, workspace: Workspace, tmp_path: Path):
    outputs = tmp_path / "outputs"
    workspace.train("stage=teacher", "trainer.max_steps=2", directory=outputs / "teacher" / "2026-01-01_00-00-00")
    message = fails("stage=contrastive", f"outputs={outputs}", f"clip={tmp_path}/other")
    assert f"was made with clip={workspace.clip}" in message
    assert f"Pass clip={workspace.clip}" in message


def test_resume_from_a_directory_without_checkpoint_is_refused(fails: Fails, tmp_path: Path):
    message = fails("stage=teacher", f"resume={tmp_path}", place=False)
    assert f"resume={tmp_path}: no checkpoint" in message


def test_unknown_benchmark_lists_the_known(fails: Fails):
    message = fails("stage=teacher", "eval=[starter_retreival]")
    assert "starter_retreival" in message
    assert "starter_retrieval" in message


@pytest.mark.parametrize(("key", "limit"), [("model.text.max_position_embeddings=60", 58), ("data.max_length=90", 77)])
def test_texts_longer_than_a_tower_reads_are_refused(fails: Fails, key: str, limit: int):
    message = fails("stage=teacher", key)
    assert "data.max_length" in message
    assert f"at most {limit} tokens" in message


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("clip", ["experiment=altclip_teacher"]),
        ("student", ["experiment=altclip_teacher", "clip=somewhere"]),
        ("data.parallel_texts", ["experiment=altclip_teacher", "clip=somewhere", "student=somewhere"]),
        ("start", ["experiment=altclip_contrastive"]),
        ("data.image_texts", ["experiment=altclip_contrastive", "start=somewhere"]),
        ("eval.retrieval.root", ["stage=teacher", "eval=[retrieval]", "eval.retrieval.language=zh"]),
    ],
)
def test_key_that_a_choice_leaves_open_is_named(fails: Fails, key: str, overrides: list[str]):
    message = fails(*overrides, tiny=False)
    assert message.startswith("error: ")
    assert f"pass {key}=" in message


def test_warm_up_longer_than_the_run_names_the_key(fails: Fails):
    assert "stage.schedule.warmup_steps=9" in fails("stage=teacher", "stage.schedule.warmup_steps=9")


def test_gradient_accumulation_is_refused(fails: Fails):
    assert "data.global_batch_size" in fails("stage=teacher", "+trainer.accumulate_grad_batches=2")


@pytest.mark.parametrize("kind", ["checkpoint", "clip", "run"])
def test_evaluation_of_what_is_no_model_is_refused(
    taught: TrainedRun, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str
):
    checkpoint = {
        "checkpoint": taught.directory / "checkpoints" / "step_000000002.ckpt",
        "clip": workspace.starter,
        "run": taught.directory,
    }[kind]
    place = f"hydra.run.dir={workspace.new_directory()}"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", f"checkpoint={checkpoint}", place])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    message = str(exit_.value.code)
    assert message.startswith(f"error: checkpoint={checkpoint}")
    assert "pass" in message.lower()


def test_full_error_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, workspace: Workspace):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", *workspace.overrides("stage=teacher", "trainer.max_steps=abc")])
    with pytest.raises(ValueError, match=r"trainer\.max_steps='abc'"):
        run_main(train.main, train.CONFIGS, "train")

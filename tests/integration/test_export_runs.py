"""Runs of both stages, exported: from the run, from its checkpoints, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from altclip_train.cli import main
from altclip_train.export import export
from tests.workspace import TrainedRun, Workspace

FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def taught(workspace: Workspace) -> TrainedRun:
    return workspace.train("stage=teacher", "eval=[starter_retrieval]")


@pytest.fixture(scope="module")
def tuned(workspace: Workspace, taught: TrainedRun) -> TrainedRun:
    return workspace.train("stage=contrastive", f"start={taught.model}")


@pytest.fixture(params=["taught", "tuned"])
def run(request: pytest.FixtureRequest) -> TrainedRun:
    return request.getfixturevalue(request.param)


@pytest.fixture
def moved(taught: TrainedRun, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the run of stage one under a new name, free to be damaged: its last checkpoint."""

    def copy(name: str) -> Path:
        shutil.copytree(taught.directory, tmp_path / name)
        return tmp_path / name / "checkpoints/step_000000004.ckpt"

    return copy


def assert_equal_weights(first: Path, second: Path) -> None:
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_last_checkpoint_gives_the_model_directory_bit_for_bit(run: TrainedRun, tmp_path: Path):
    directory = export(run.directory / "checkpoints/step_000000004.ckpt", tmp_path / "out")
    assert_equal_weights(directory, run.model)
    assert {file.name for file in directory.iterdir()} == FILES == {file.name for file in run.model.iterdir()}
    for name in FILES - {"model.safetensors"}:
        assert (directory / name).read_bytes() == (run.model / name).read_bytes(), name


def test_checkpoint_in_the_middle_is_another_model_with_the_same_frozen_parts(run: TrainedRun, tmp_path: Path):
    directory = export(run.directory / "checkpoints/step_000000002.ckpt", tmp_path / "out")
    then, now = load_file(directory / "model.safetensors"), load_file(run.model / "model.safetensors")
    changed = {name for name in then if not torch.equal(then[name], now[name])}
    assert any(name.startswith("text_model.") for name in changed)
    assert not any(name.startswith("visi") or name.startswith("visual_projection") for name in changed)
    card = (directory / "README.md").read_text(encoding="utf-8")
    assert "| steps | 2 |" in card
    assert "No benchmark results" in card  # those of step 4 are not of these weights


def test_run_and_its_model_directory_give_the_same_files(run: TrainedRun, tmp_path: Path):
    first, second = export(run.directory, tmp_path / "a"), export(run.model, tmp_path / "b")
    assert_equal_weights(first, run.model)
    assert_equal_weights(second, run.model)
    for name in FILES - {"model.safetensors"}:  # whose header has no fixed order
        assert (first / name).read_bytes() == (second / name).read_bytes() == (run.model / name).read_bytes(), name


def test_cards_know_stages_data_and_results(taught: TrainedRun, tuned: TrainedRun):
    card = (taught.model / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["language"] == ["en", "zh", "ja", "es", "fr"]
    assert "| 3,700 | by its samples |" in card
    score = 100 * taught.metrics("starter_retrieval/zh/text_to_image_R@1")[4]
    (row,) = [line for line in card.splitlines() if line.startswith("| starter_retrieval | zh | val |")]
    assert f" {score:.1f} |" in row
    both = (tuned.model / "README.md").read_text(encoding="utf-8")
    assert both.index("### Teacher learning") < both.index("### Contrastive learning")


def test_card_takes_the_results_of_an_evaluation_of_this_model_only(moved: Callable[[str], Path], tmp_path: Path):
    run = moved("evaluated").parent.parent
    result = {"benchmark": "mine", "language": "en", "metrics": {"top1": 0.25}}
    for checkpoint, known in ((tmp_path / "elsewhere", False), (run / "model", True)):
        text = json.dumps({"checkpoint": str(checkpoint), "results": [result]})
        (run / "results.json").write_text(text)
        card = (export(run, tmp_path / str(known)) / "README.md").read_text(encoding="utf-8")
        assert ("| mine | en | not recorded | 25.0 |" in card) == known


def test_text_tower_of_clip_is_exported_from_its_checkpoint(workspace: Workspace, tmp_path: Path):
    run = workspace.train("stage=contrastive", f"start={workspace.clip}", "stage.locked=[]", "data.languages=[en]")
    directory = export(run.directory / "checkpoints/step_000000004.ckpt", tmp_path / "out")
    assert_equal_weights(directory, run.model)
    assert "tags:\n- clip\n" in (run.model / "README.md").read_text(encoding="utf-8")


def refused(checkpoint: Path, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(checkpoint), str(directory)])
    message = str(exit_.value.code)
    assert message.startswith("error: ")
    assert "Traceback" not in message + capsys.readouterr().err
    assert not directory.exists()
    assert not list(directory.parent.glob("*.incomplete"))
    return message


def test_changed_clip_is_refused_naming_both_hashes(
    workspace: Workspace, moved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = moved("run")
    clip = tmp_path / "clip"
    shutil.copytree(workspace.clip, clip)
    run_file = checkpoint.parent.parent / "run.json"
    described = json.loads(run_file.read_text())
    recorded = described["sha256"]["clip"]
    run_file.write_text(json.dumps({**described, "clip": str(clip)}))
    (clip / "config.json").write_text((clip / "config.json").read_text() + "\n")
    message = refused(checkpoint, tmp_path / "out", capsys)
    assert f"clip={clip} of sha256 {recorded}, the directory now has" in message
    shutil.rmtree(clip)
    assert f"clip={clip}, which is not a directory here" in refused(checkpoint, tmp_path / "out", capsys)


def test_config_that_would_build_something_else_is_refused(
    moved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = moved("run")
    file = checkpoint.parent.parent / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    config["stage"]["text"] = {"_target_": "os.system", "command": f"touch {tmp_path}/payload"}
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert "_target_ is 'os.system'" in refused(checkpoint, tmp_path / "out", capsys)
    assert not (tmp_path / "payload").exists()


def test_directory_of_open_clip_alone_is_a_clip_to_learn_from(workspace: Workspace, tmp_path: Path):
    directory = export(workspace.clip, tmp_path / "clip", format="open_clip")
    (directory / "preprocessor_config.json").unlink()
    ours, theirs = (
        workspace.train("stage=teacher", f"clip={clip}", "trainer.max_steps=2") for clip in (workspace.clip, directory)
    )
    assert_equal_weights(theirs.model, ours.model)


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_damaged_and_hostile_checkpoints_are_refused(
    moved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = moved("run")
    torch.save({"state_dict": Payload(tmp_path / "payload"), "global_step": 4}, checkpoint)
    assert "is not a checkpoint of altclip_train, or is damaged" in refused(checkpoint, tmp_path / "out", capsys)
    assert not (tmp_path / "payload").exists()
    torch.save({"weights": torch.zeros(2)}, checkpoint)
    assert "lacks state_dict or global_step" in refused(checkpoint, tmp_path / "out", capsys)
    checkpoint.write_bytes(b"PK\x03\x04 not a whole file")
    assert f"{checkpoint} is not a checkpoint" in refused(checkpoint, tmp_path / "out", capsys)


def test_checkpoint_outside_of_a_run_is_refused(taught: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    alone = tmp_path / "checkpoints" / "alone.ckpt"
    alone.parent.mkdir()
    shutil.copyfile(taught.directory / "checkpoints/step_000000004.ckpt", alone)
    assert f"{tmp_path} is not a run directory" in refused(alone, tmp_path / "out", capsys)


def test_unfinished_run_names_a_checkpoint(
    moved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = moved("run")
    run = checkpoint.parent.parent
    shutil.rmtree(run / "model")
    assert f"such as {checkpoint}" in refused(run, tmp_path / "out", capsys)


def test_other_tokenizer_than_the_checkpoint_was_trained_with_is_refused(
    moved: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = moved("run")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "tokenizer_sha256": "0" * 64}, checkpoint)
    assert "tokenizer" in refused(checkpoint, tmp_path / "out", capsys)

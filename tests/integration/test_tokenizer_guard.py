"""Weights are never used with another tokenizer: on load, in evaluation, at the start of stage two, on resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from altclip_train.evaluate import load_encoder
from altclip_train.models import load_model
from altclip_train.processing import AltCLIPProcessor, XLMRTokenizer, load_tokenizer, train_sentencepiece
from tests.workspace import TrainedRun, Workspace


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a vocabulary of its own, small enough for every tower."""
    folder = tmp_path_factory.mktemp("other")
    train_sentencepiece(["a red apple", "two cats on a table", "りんご"] * 9, folder / "model", 60)
    XLMRTokenizer(folder / "model").save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def taught(workspace: Workspace) -> TrainedRun:
    return workspace.train("stage=teacher", "trainer.max_steps=2")


@pytest.fixture
def mixed_up(taught: TrainedRun, other: Path, tmp_path: Path) -> Path:
    """The trained model with the tokenizer files of another one."""
    shutil.copytree(taught.model, tmp_path / "model")
    for file in other.iterdir():
        shutil.copy(file, tmp_path / "model")
    return tmp_path / "model"


def both(one: Path, two: Path) -> str:
    """Matches a message that names both hashes."""
    found = XLMRTokenizer.from_pretrained(one).fingerprint
    expected = XLMRTokenizer.from_pretrained(two).fingerprint
    return rf"(?s)another tokenizer than the one of .*{found}.*trained with {expected}"


def test_directory_and_checkpoint_carry_the_hash_of_the_tokenizer(workspace: Workspace, taught: TrainedRun):
    expected = load_tokenizer(workspace.starter / "tokenizer").fingerprint
    assert load_model(taught.model).tokenizer_sha256 == expected
    assert taught.checkpoint(2)["tokenizer_sha256"] == expected
    for file in ("sentencepiece.bpe.model", "tokenizer.json"):  # either file alone is the same tokenizer
        assert (taught.model / file).is_file()
    assert AltCLIPProcessor.from_pretrained(taught.model).tokenizer.fingerprint == expected


def test_a_model_directory_with_another_tokenizer_is_refused(mixed_up: Path, taught: TrainedRun):
    with pytest.raises(ValueError, match=both(mixed_up, taught.model)):
        AltCLIPProcessor.from_pretrained(mixed_up)
    with pytest.raises(ValueError, match=both(mixed_up, taught.model)):
        load_encoder(mixed_up, batch_size=2, device="cpu")


def test_stage_two_refuses_another_tokenizer_than_its_start(
    workspace: Workspace, taught: TrainedRun, mixed_up: Path, other: Path
):
    with pytest.raises(ValueError, match=both(other, taught.model)):
        workspace.train("stage=contrastive", f"start={mixed_up}")
    with pytest.raises(ValueError, match=both(other, taught.model)):
        workspace.train("stage=contrastive", f"start={taught.model}", f"data.tokenizer_directory={other}")


def test_resume_refuses_another_tokenizer(workspace: Workspace, other: Path, tmp_path: Path):
    # The student is random and its tokenizer the starter data's, so no directory of the command changes.
    starter = shutil.copytree(workspace.starter, tmp_path / "starter", copy_function=shutil.copy)
    overrides = ["stage=teacher", f"starter={starter}"]
    first = workspace.train(*overrides, "trainer.max_steps=2")
    for file in other.iterdir():
        shutil.copy(file, starter / "tokenizer")
    with pytest.raises(ValueError, match=both(other, workspace.starter / "tokenizer")):
        workspace.train(*overrides, f"resume={first.directory}", directory=first.directory)


def test_evaluation_refuses_a_vocabulary_larger_than_the_embeddings(workspace: Workspace, tmp_path: Path):
    larger = load_tokenizer(workspace.clip).vocab_size
    clip = workspace.build_clip(tmp_path / "clip", vocab_size=larger - 1)
    with pytest.raises(ValueError, match=rf"has {larger} entries, but the text tower has {larger - 1} embeddings"):
        load_encoder(clip, batch_size=2, device="cpu")

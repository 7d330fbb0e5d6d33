"""What a frozen tower makes is computed once, and training on it is the training that it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from altclip_train.cli import main
from altclip_train.models import CLIPTextModel
from altclip_train.models.altclip import DualEncoder
from tests.workspace import BATCH, TrainedRun, Workspace

PAIRS = 3 * BATCH
STAGES = {
    "teacher": ("parallel_texts/train/000000.tar", "data.parallel_texts", "teacher.en"),
    "contrastive": ("image_texts/scenes/train/000000.tar", "data.image_texts", "image"),
}


class Training:
    """Two epochs of a stage on a few samples, with its frozen tower watched."""

    def __init__(self, stage: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, start: Path) -> None:
        shard, self.source, self.name = STAGES[stage]
        self.stage, self.workspace, self.start = stage, workspace, start
        self.shard = workspace.first_samples(shard, PAIRS)
        self.computed: list[int] = []  # texts or pictures of each call of the frozen tower
        self._watch(monkeypatch)

    def _watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encode_text, encode_image = CLIPTextModel.encode_packed, DualEncoder.encode_image

        def text(tower, tokens):
            self.computed.append(len(tokens.lengths))
            return encode_text(tower, tokens)

        def image(model, pixel_values, *more):
            self.computed.append(len(pixel_values))
            return encode_image(model, pixel_values, *more)

        monkeypatch.setattr(CLIPTextModel, "encode_packed", text)
        monkeypatch.setattr(DualEncoder, "encode_image", image)

    @property
    def sidecar(self) -> Path:
        return self.shard.with_name(f"{self.shard.name}.{self.name}.safetensors")

    def run(self, *overrides: str) -> TrainedRun:
        self.computed.clear()
        own = [f"stage={self.stage}", f"{self.source}=[{{urls: {self.shard}, languages: [en, zh]}}]"]
        own += ["data.val_texts=[]"] if self.stage == "teacher" else [f"start={self.start}"]
        steps = 2 * PAIRS // BATCH
        return self.workspace.train(*own, "trainer.max_epochs=2", f"trainer.max_steps={steps}", *overrides)

    def losses(self, *overrides: str) -> list[float]:
        return list(self.run(*overrides).metrics("train/loss").values())


@pytest.fixture(scope="module")
def altclip(workspace: Workspace) -> Path:
    return workspace.train("stage=teacher").model


@pytest.fixture(params=list(STAGES))
def training(request, workspace: Workspace, monkeypatch, altclip: Path) -> Training:
    return Training(request.param, workspace, monkeypatch, altclip)


def test_a_first_epoch_fills_the_cache_and_the_second_computes_nothing(training: Training):
    plain = training.losses("data.embeddings=null")
    assert training.computed == [BATCH] * 6
    assert not training.sidecar.exists()
    filling = training.losses("data.embeddings=fill", "data.embeddings_dtype=float32")
    assert training.computed == [BATCH] * 3
    assert filling == pytest.approx(plain, rel=1e-5)
    reading = training.losses("data.embeddings_dtype=float32")
    assert training.computed == []
    assert reading == pytest.approx(plain, rel=1e-5)
    assert load_file(training.sidecar)["filled"].all()


def test_half_precision_changes_the_loss_by_less_than_a_thousandth(training: Training):
    plain = training.losses("data.embeddings=null")
    assert training.losses("data.embeddings=fill") == pytest.approx(plain, rel=1e-3)
    # What is computed is rounded as what is read: a run that was killed in its first epoch goes on alike.
    all_read = training.losses("data.embeddings=read")
    training.sidecar.unlink()
    assert training.losses("data.embeddings=fill") == pytest.approx(all_read, rel=1e-5)


def test_the_tool_makes_what_training_reads(training: Training):
    model = training.workspace.clip if training.stage == "teacher" else training.start
    main(["embed", str(model), str(training.shard), "--for", training.stage])
    training.losses("data.embeddings=read")
    assert training.computed == []


@pytest.mark.slow
def test_loader_processes_see_what_the_run_fills(training: Training):
    training.run("data.embeddings=fill", "data.num_workers=1")
    assert load_file(training.sidecar)["filled"].all()
    training.run("data.num_workers=1")
    assert training.computed == []


def test_only_what_is_missing_is_computed(training: Training):
    training.run("data.embeddings=fill", "trainer.max_steps=2")
    assert load_file(training.sidecar)["filled"].sum() == 2 * BATCH
    training.losses("data.embeddings=read")
    assert sum(training.computed) == 2 * (PAIRS - 2 * BATCH)


def test_embeddings_of_other_settings_are_refused(training: Training):
    training.run("data.embeddings=fill", "trainer.max_steps=2")
    with pytest.raises(ValueError, match=r"holds other embeddings: dtype is float16, expected float32"):
        training.run("data.embeddings_dtype=float32")


def test_augmented_pictures_are_not_cached(workspace: Workspace, monkeypatch, altclip: Path):
    training = Training("contrastive", workspace, monkeypatch, altclip)
    with pytest.warns(UserWarning, match=r"data\.augment is on"):
        training.run("data.embeddings=fill", "data.augment={brightness: 0.1}", "trainer.max_steps=2")
    assert not training.sidecar.exists()


def test_an_image_tower_that_trains_is_not_cached(workspace: Workspace, monkeypatch, altclip: Path):
    training = Training("contrastive", workspace, monkeypatch, altclip)
    training.run("data.embeddings=fill", "stage.locked=[]", "trainer.max_steps=2")
    assert not training.sidecar.exists()

"""Stage two on tiny towers: what it learns, what stays locked, and the temperature."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from altclip_train.losses import duplicate_share
from altclip_train.models import AltCLIPModel, CLIPModel, load_model
from altclip_train.stages import contrastive
from tests.workspace import BATCH, IMAGE_SIZE, TrainedRun, Workspace

LOCKED = ("vision_model.", "visual_projection.")


@pytest.fixture(scope="module")
def start(workspace: Workspace) -> TrainedRun:
    return workspace.train("stage=teacher", "trainer.max_steps=2", "data.max_length=40")


@pytest.fixture(scope="module")
def run(workspace: Workspace, start: TrainedRun) -> TrainedRun:
    return workspace.train("stage=contrastive", f"start={start.model}")


def starter_clip(*overrides: str) -> list[str]:
    """A tiny CLIP from random weights, nothing locked."""
    tiny = {
        "image": {"image_size": 32, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
        "teacher_text": {"vocab_size": 900, "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2},
    }
    model = [f"model.{tower}.{name}={value}" for tower, fields in tiny.items() for name, value in fields.items()]
    return ["stage=contrastive", "experiment=starter_clip", *model, "model.projection_dim=12", *overrides]


def coloured_pairs(shard: Path) -> None:
    """Eight plain pictures, each with one caption in two languages."""
    names = ["black", "blue", "lime", "cyan", "red", "magenta", "yellow", "white"]
    with tarfile.open(shard, "w") as tar:
        for number, name in enumerate(names):
            picture = io.BytesIO()
            Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), name).save(picture, "png")
            captions = json.dumps({"en": f"picture {number}: {name}", "zh": f"图片{number}"}).encode()
            for field, data in (("png", picture.getvalue()), ("json", captions)):
                member = tarfile.TarInfo(f"pair{number}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_text_tower_overfits_eight_pairs_behind_a_locked_image_tower(
    workspace: Workspace, start: TrainedRun, tmp_path: Path
):
    coloured_pairs(tmp_path / "pairs.tar")
    run = workspace.train(
        "stage=contrastive",
        f"start={start.model}",
        f"data.image_texts=[{{urls: {tmp_path}/pairs.tar}}]",
        "stage.optimizer.lr=1e-2",
        "trainer.max_epochs=-1",
        "trainer.max_steps=150",
        "trainer.log_every_n_steps=10",
    )
    data = run.trainer.datamodule
    batch = data.on_after_batch_transfer(data.train_set.__getitems__(list(range(BATCH))), 0)
    with torch.no_grad():
        images, texts = run.stage.encode_image(batch), run.stage.model.encode_text(batch.text)
    similarity = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T  # (B, B)
    assert similarity.argmax(0).tolist() == similarity.argmax(1).tolist() == list(range(BATCH))
    assert run.metrics("train/loss")[149] < 0.5 < math.log(BATCH)


def test_image_tower_stays_bit_equal_and_everything_else_is_trained(start: TrainedRun, run: TrainedRun):
    before, after = load_model(start.model).state_dict(), load_model(run.model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if not name.startswith(LOCKED)}
    # Positions after the longest text are read by none; the key's bias has no influence on a softmax.
    assert trained - changed <= {"text_model.roberta.embeddings.position_embeddings.weight"}
    assert changed <= trained
    assert {"logit_scale", "text_projection.weight"} <= changed


@pytest.mark.parametrize(("name", "length"), [("start", 40), ("run", 77)])
def test_tokenizer_of_the_model_directory_cuts_where_its_stage_did(
    name: str, length: int, request: pytest.FixtureRequest
):
    settings = json.loads((request.getfixturevalue(name).model / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == length


def test_duplicate_captions_are_counted_in_the_steps_that_are_logged(
    workspace: Workspace, start: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    coloured_pairs(tmp_path / "pairs.tar")
    counted: list[int] = []

    def share(ids: torch.Tensor) -> torch.Tensor:
        counted.append(len(ids))
        return duplicate_share(ids)

    monkeypatch.setattr(contrastive, "duplicate_share", share)
    run = workspace.train(
        "stage=contrastive",
        f"start={start.model}",
        f"data.image_texts=[{{urls: {tmp_path}/pairs.tar}}]",
        "data.global_batch_size=16",  # each pair twice
        "data.epoch_samples=16",
        "data.languages=[en]",
        "trainer.max_epochs=-1",
        "trainer.max_steps=5",
        "trainer.log_every_n_steps=2",
    )
    assert run.metrics("train/duplicate_captions") == {1: 1.0, 3: 1.0}
    assert counted == [16, 16]


def test_locked_tower_is_in_eval_mode_and_not_in_a_checkpoint(run: TrainedRun):
    stage = run.stage.train()
    assert stage.model.text_model.training
    assert not any(module.training for module in stage.model.vision_model.modules())
    assert not [name for name in run.checkpoint(4)["state_dict"] if "vision" in name or "visual" in name]


@pytest.mark.parametrize(("scale", "clamped"), [(4.7, math.log(100)), (-1.0, 0.0)])
def test_training_clamps_the_logit_scale(workspace: Workspace, scale: float, clamped: float):
    overrides = starter_clip(f"model.logit_scale_init_value={scale}", "trainer.max_steps=2")
    run = workspace.train(*overrides, "stage.optimizer.lr=1e-6")
    assert run.stage.model.logit_scale.item() == pytest.approx(clamped, abs=1e-5)


def test_checkpoint_holds_the_clamped_logit_scale(workspace: Workspace):
    overrides = starter_clip("model.logit_scale_init_value=6.0", "trainer.max_steps=2")
    run = workspace.train(*overrides, "callbacks.checkpoints.every_n_train_steps=1")
    scale = run.checkpoint(1)["state_dict"]["model.logit_scale"].item()
    assert scale == pytest.approx(math.log(100), abs=1e-6)


def test_logit_scale_and_biases_have_no_weight_decay(run: TrainedRun):
    decay = {id(p): group["weight_decay"] for group in run.trainer.optimizers[0].param_groups for p in group["params"]}
    named = {name: decay[id(p)] for name, p in run.stage.model.named_parameters() if p.requires_grad}
    assert named["logit_scale"] == 0
    assert named["text_projection.weight"] == 0.01
    assert {value for name, value in named.items() if name.endswith(".bias")} == {0}


def test_unlocked_run_with_a_clip_text_tower_writes_a_clip_that_teaches(workspace: Workspace):
    run = workspace.train(*starter_clip())
    assert json.loads((run.model / "config.json").read_text())["model_type"] == "clip"
    assert isinstance(load_model(run.model), CLIPModel)
    taught = workspace.train("stage=teacher", f"clip={run.model}", "trainer.max_steps=2")
    assert isinstance(load_model(taught.model), AltCLIPModel)


def test_unlocked_run_trains_the_image_tower(workspace: Workspace):
    overrides = starter_clip()
    before = workspace.stage(*overrides).model.state_dict()
    after = workspace.train(*overrides).stage.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same <= {"text_model.embeddings.position_embedding.weight"}


def test_sigmoid_loss_trains_its_bias_and_keeps_it_in_checkpoints(workspace: Workspace, start: TrainedRun):
    overrides = ["stage=contrastive", f"start={start.model}", "stage.loss=sigmoid"]
    before = workspace.stage(*overrides)
    assert (before.model.logit_scale.exp().item(), before.logit_bias.item()) == (pytest.approx(10), -10)
    run = workspace.train(*overrides)
    bias = run.stage.logit_bias.item()
    assert bias != -10
    groups = run.trainer.optimizers[0].param_groups
    assert [g["weight_decay"] for g in groups if any(p is run.stage.logit_bias for p in g["params"])] == [0]
    checkpoint = run.checkpoint(4)
    assert checkpoint["state_dict"]["logit_bias"].item() == bias
    before.on_load_checkpoint(checkpoint)
    before.load_state_dict(checkpoint["state_dict"])
    assert before.logit_bias.item() == bias
    assert run.metrics("train/logit_bias")[0] == -10
    assert load_model(run.model).logit_scale.item() == run.stage.model.logit_scale.item()
    with pytest.raises(ValueError, match=r"with stage\.loss=sigmoid, this command has stage\.loss=softmax"):
        workspace.stage("stage=contrastive", f"start={start.model}").on_load_checkpoint(run.checkpoint(4))


def test_a_part_inside_a_tower_can_be_locked(workspace: Workspace, start: TrainedRun):
    word_vectors = "text_model.embeddings.word_embeddings"
    run = workspace.train("stage=contrastive", f"start={start.model}", f"stage.locked=[vision_model,{word_vectors}]")
    before, after = (load_model(directory).state_dict() for directory in (start.model, run.model))
    assert torch.equal(before[f"{word_vectors}.weight"], after[f"{word_vectors}.weight"])
    assert not torch.equal(before["visual_projection.weight"], after["visual_projection.weight"])
    kept = run.checkpoint(4)["state_dict"]
    assert f"model.{word_vectors}.weight" not in kept
    assert "model.text_model.embeddings.position_embeddings.weight" in kept


@pytest.mark.parametrize(("part", "missing"), [("text", "text"), ("text_model.embeddings.words", "words")])
def test_locking_a_part_that_a_model_lacks_names_those_it_has(
    workspace: Workspace, start: TrainedRun, part: str, missing: str
):
    with pytest.raises(Exception, match=rf"stage.locked names '{part}': \w+ has no '{missing}'; its parts are \["):
        workspace.stage("stage=contrastive", f"start={start.model}", f"stage.locked=[{part}]")


@pytest.mark.parametrize(
    ("override", "drawn"),
    [("data.languages=[zh]", {"zh"}), ("data.language_weights={en: 0.0}", {"zh"}), ("data.languages=[en]", {"en"})],
)
def test_caption_languages_are_those_asked_for(workspace: Workspace, start: TrainedRun, override: str, drawn: set[str]):
    data = workspace.data("stage=contrastive", f"start={start.model}", override)
    assert set(data.train_set.__getitems__(list(range(20))).languages) == drawn


def test_gradients_by_rows_train_what_dense_ones_do(workspace: Workspace, start: TrainedRun):
    steps = ["trainer.max_epochs=-1", "trainer.max_steps=10"]
    overrides = ["stage=contrastive", f"start={start.model}", "stage.optimizer.lr=1e-2", *steps]
    rows = workspace.train(*overrides)
    dense = workspace.train(*overrides, "stage.optimizer._target_=torch.optim.AdamW")
    assert rows.stage.model.text_model.embeddings.word_embeddings.sparse
    assert not dense.stage.model.text_model.embeddings.word_embeddings.sparse
    mine, other = rows.metrics("train/loss"), dense.metrics("train/loss")
    assert len(mine) == 10
    assert mine == pytest.approx(other, rel=1e-5)
    for name, weight in dense.stage.state_dict().items():
        torch.testing.assert_close(rows.stage.state_dict()[name], weight, rtol=1e-4, atol=1e-5)

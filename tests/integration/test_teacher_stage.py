"""Stage one on tiny towers: what it learns, what stays frozen, what it writes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from altclip_train.models import compile_blocks, load_clip_text
from altclip_train.processing import CLIPTokenizer
from altclip_train.stages import teacher
from altclip_train.types import PackedTokens
from tests.workspace import BATCH, TrainedRun, Workspace

TEXTS = "parallel_texts/train/000000.tar"


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> TrainedRun:
    # With benchmarks in the middle, so that what evaluation leaves behind would show in the checkpoints.
    return workspace.train("stage=teacher", "eval=[starter_retrieval]", "callbacks.benchmarks.every_n_steps=1")


def texts_of(packed: PackedTokens, tokenizer) -> list[str]:
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in packed.input_ids.split(packed.lengths.tolist())]


def test_student_overfits_eight_entries(workspace: Workspace):
    shard = workspace.first_samples(TEXTS, BATCH)
    run = workspace.train(
        "stage=teacher",
        f"data.parallel_texts=[{{urls: {shard}}}]",
        "data.val_texts=[]",
        "data.languages=[zh]",
        "stage.optimizer.lr=1e-2",
        "stage.weight_decay=0",
        "trainer.max_epochs=-1",
        "trainer.max_steps=150",
        "trainer.log_every_n_steps=10",
    )
    losses = run.metrics("train/loss")
    assert losses[149] < 0.05 * losses[9]


def test_every_entry_gives_two_student_texts_and_one_teacher_text(workspace: Workspace):
    data = workspace.data("stage=teacher", "data.languages=[zh]")
    batch = data.train_set.__getitems__(list(range(BATCH)))
    english = texts_of(batch.student, data.tokenizer)[BATCH:]
    taught = texts_of(batch.teacher, CLIPTokenizer.from_pretrained(workspace.clip))
    assert len(batch.student.lengths) == 2 * BATCH
    assert batch.languages == ["zh"] * BATCH
    # The CLIP tokenizer lower-cases and sets punctuation apart.
    assert [text.lower().replace(" ", "") for text in english] == [text.replace(" ", "") for text in taught]


def test_loss_is_the_mean_over_both_texts_of_the_squared_distance_to_the_english_teacher(workspace: Workspace):
    stage, data = workspace.stage("stage=teacher"), workspace.data("stage=teacher")
    batch = data.train_set.__getitems__(list(range(3)))
    student = stage.student.encode_packed(batch.student)  # (2 * 3, W)
    target = stage.teacher.encode_packed(batch.teacher)  # (3, W)
    distances = [(student[i] - target[i % 3]).square().mean() for i in range(6)]
    stage.log = lambda *_, **__: None
    torch.testing.assert_close(stage.training_step(batch), torch.stack(distances).mean())


def test_teacher_reads_the_end_of_text_state_before_the_text_projection(workspace: Workspace):
    stage = workspace.stage("stage=teacher")
    tokens = CLIPTokenizer.from_pretrained(workspace.clip).pack(["a red apple", "two cats"], 77)
    assert stage.teacher.encode_packed(tokens).shape == (2, stage.teacher.config.hidden_size)


def test_teacher_is_frozen_and_stays_in_eval_mode(run: TrainedRun, workspace: Workspace):
    stage = run.stage.train()
    assert stage.student.training
    assert not any(module.training for module in stage.teacher.modules())
    assert not any(parameter.requires_grad for parameter in stage.teacher.parameters())
    for name, tensor in load_clip_text(workspace.clip).state_dict().items():
        assert torch.equal(stage.teacher.state_dict()[name], tensor), name


def test_only_the_student_is_in_a_checkpoint_and_the_optimizer(run: TrainedRun):
    checkpoint = run.checkpoint(4)
    student = {f"student.{name}" for name in run.stage.student.state_dict()}
    assert set(checkpoint["state_dict"]) == student
    optimized = {id(p) for group in run.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in run.stage.student.parameters()}


def test_checkpoint_loads_strictly_without_the_teacher(run: TrainedRun, workspace: Workspace):
    fresh = workspace.stage("stage=teacher", "seed=1")
    checkpoint = run.checkpoint(4)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"], strict=True)
    for name, tensor in run.stage.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    del checkpoint["state_dict"]["student.transformation.weight"]
    with pytest.raises(RuntimeError, match="transformation"):
        fresh.load_state_dict(checkpoint["state_dict"], strict=True)


def test_benchmarks_and_validation_are_in_metrics_csv(workspace: Workspace):
    run = workspace.train("stage=teacher", "eval=[starter_zero_shot]", "data.epoch_samples=16", "trainer.max_epochs=2")
    assert list(run.metrics("starter_zero_shot/zh/top1")) == [4]
    assert list(run.metrics("val/other_cosine")) == [1, 3]
    assert run.metrics("val/english_mse")[3] > 0


def test_operations_are_counted_of_what_trains_and_of_what_teaches(workspace: Workspace):
    stage, data = workspace.stage("stage=teacher"), workspace.data("stage=teacher")
    batch = data.train_set.__getitems__(list(range(3)))
    stage.log = lambda *_, **__: None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage.training_step(batch).backward()
    counted = int(stage.training_flops(batch))
    # Gradients of what enters the first block's products are needed for the embeddings: backward is twice forward.
    assert counted == counter.get_total_flops()


def test_operations_are_logged(run: TrainedRun):
    assert all(value > 0 for value in run.metrics("throughput/tflops").values())


def test_locked_word_vectors_of_a_student_stay_bit_equal_and_out_of_checkpoints(workspace: Workspace, run: TrainedRun):
    locked = workspace.train(
        "stage=teacher", f"student={run.model}", "stage.locked=[embeddings.word_embeddings]", "trainer.max_steps=2"
    )
    student, before = locked.stage.student.state_dict(), run.stage.student.state_dict()
    assert torch.equal(student["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"])
    assert not torch.equal(student["transformation.weight"], before["transformation.weight"])
    checkpoint = locked.checkpoint(2)
    assert "student.embeddings.word_embeddings.weight" not in checkpoint["state_dict"]
    locked.stage.on_load_checkpoint(checkpoint)
    locked.stage.load_state_dict(checkpoint["state_dict"])


def test_random_word_vectors_cannot_be_locked(workspace: Workspace):
    with pytest.raises(Exception, match=r"stage.locked=\['embeddings'\] would keep random weights: pass student=DIR"):
        workspace.stage("stage=teacher", "stage.locked=[embeddings]")


# Tracing asks every tensor for its gradient, and hides torch's warning of that in a way that an error gets past.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_switches_change_no_loss(workspace: Workspace, monkeypatch):
    switches = ["stage.gradient_checkpointing=true", "stage.compile=true", "float32_matmul_precision=high"]
    backend = CompileCounter()
    monkeypatch.setattr(teacher, "compile_blocks", partial(compile_blocks, backend=backend))
    try:
        plain, switched = (workspace.train("stage=teacher", *more) for more in ([], switches))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert backend.frame_count > 0
    assert switched.metrics("train/loss") == pytest.approx(plain.metrics("train/loss"), rel=1e-5)


def test_unknown_matmul_precision_is_refused(workspace: Workspace):
    with pytest.raises(ValueError, match="float32_matmul_precision='tf32': expected 'highest', 'high' or 'medium'"):
        workspace.train("stage=teacher", "float32_matmul_precision=tf32")

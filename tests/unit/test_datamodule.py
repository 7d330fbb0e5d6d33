"""The loaders of both stages: order, position, checks against the towers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from torch.utils.data import Dataset

from altclip_train.data.loaders import PlannedLoader
from altclip_train.data.plan import Plan
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.data.samples import decode_image
from altclip_train.models import AltCLIPTextConfig, CLIPTextConfig
from tests.workspace import BATCH, IMAGE_SIZE, Workspace

VOCABULARY, TEACHER_VOCABULARY = 4000, 900


class Positions(Dataset):
    """A dataset whose batches are the positions themselves."""

    def __getitems__(self, positions: list[int]) -> list[int]:
        return positions


def loader(position, **options) -> PlannedLoader:
    sampler = PlannedBatchSampler(
        plan=Plan(shard_counts=[[11]], weights=[1], seed=0), global_batch_size=3, rank=0, world_size=1
    )
    return PlannedLoader(Positions(), sampler=sampler, position=position, **options)  # type: ignore[arg-type]


def test_a_pass_begins_where_the_position_is_and_ends_with_its_epoch():
    # An epoch is 11 // 3 = 3 batches: positions 0 to 8, then 9 to 17.
    assert list(loader(lambda: 0)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert list(loader(lambda: 6)) == [[6, 7, 8]]
    assert list(loader(lambda: 12)) == [[12, 13, 14], [15, 16, 17]]
    assert len(loader(lambda: 12)) == 3


def test_position_is_read_when_the_first_batch_is_asked_for():
    position = 0
    batches = iter(loader(lambda: position))
    position = 6  # restored from a checkpoint after the iterator was made
    assert list(batches) == [[6, 7, 8]]


def test_a_loader_process_is_kept_and_goes_on_with_the_next_epoch():
    position = 0
    planned = loader(lambda: position, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver")
    batches = iter(planned)
    position = 6
    first = list(batches)
    position = 9
    assert first + list(planned) == [[6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17]]


def test_position_counts_the_samples_of_trained_steps(workspace: Workspace):
    data = workspace.data("stage=teacher")
    assert data.position == 0
    data.trainer = SimpleNamespace(global_step=5, current_epoch=0)
    assert data.position == 5 * BATCH


@pytest.mark.parametrize("change", ["data.global_batch_size=4", "data.epoch_samples=16", "data.seed=1"])
def test_position_of_another_order_is_refused(workspace: Workspace, change: str):
    data = workspace.data("stage=teacher")
    data.trainer = SimpleNamespace(global_step=5, current_epoch=0)
    with pytest.raises(ValueError, match=r"the checkpoint was made .* start a new run"):
        workspace.data("stage=teacher", change).load_state_dict(data.state_dict())


def test_validation_visits_every_entry_once_in_batches(workspace: Workspace):
    data = workspace.data("stage=teacher", "data.global_batch_size=4")
    keys = [key for batch in data.val_dataloader() for key in batch.keys]
    assert len(keys) == len(set(keys)) == 10
    assert [len(batch.keys) for batch in data.val_dataloader()] == [4, 4, 2]


def test_no_validation_texts_give_no_validation(workspace: Workspace):
    assert workspace.data("stage=teacher", "data.val_texts=[]").val_dataloader() == []


def test_max_length_cuts_student_and_teacher_and_keeps_the_end(workspace: Workspace):
    data = workspace.data("stage=teacher", "data.max_length=5")
    batch = data.train_set.__getitems__(list(range(BATCH)))
    for packed, tokenizer in ((batch.student, data.tokenizer), (batch.teacher, data.teacher_tokenizer)):
        assert packed.lengths.max() == 5
        ends = packed.cumulative_lengths[1:].long() - 1
        assert set(packed.input_ids[ends].tolist()) == {tokenizer.eos_id}


def towers(**fields: int) -> dict:
    student = AltCLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=fields.get("student", 79))
    teacher = CLIPTextConfig(
        vocab_size=TEACHER_VOCABULARY, eos_token_id=2, max_position_embeddings=fields.get("teacher", 77)
    )
    return {"student": student, "teacher": teacher}


def test_text_tower_with_too_few_embeddings_is_refused(workspace: Workspace):
    data, fitting = workspace.data("stage=teacher"), towers()
    data.check_text_towers(**fitting)
    with pytest.raises(ValueError, match=r"the student tower has 100 embeddings.*set the tower's vocab_size"):
        data.check_text_towers(**{**fitting, "student": replace(fitting["student"], vocab_size=100)})


# XLM-R's first position is the one after its padding index, 1.
@pytest.mark.parametrize(("student", "teacher", "short"), [(78, 77, "student"), (79, 76, "teacher")])
def test_length_that_a_tower_has_no_positions_for_is_refused(
    workspace: Workspace, student: int, teacher: int, short: str
):
    data = workspace.data("stage=teacher")
    with pytest.raises(ValueError, match=rf"data.max_length=77, but the {short} tower reads at most 76 tokens"):
        data.check_text_towers(**towers(student=student, teacher=teacher))


def image_text(workspace: Workspace, *overrides: str):
    model = [
        "data.model=null",
        f"data.tokenizer_directory={workspace.starter}/clip_tokenizer",
        f"data.image_size={IMAGE_SIZE}",
    ]
    given = {override.partition("=")[0] for override in overrides}
    chosen = [override for override in model if override.partition("=")[0] not in given]
    return workspace.data("stage=contrastive", "start=null", *chosen, *overrides)


def test_pictures_of_another_size_than_the_tower_takes_are_refused(workspace: Workspace):
    data = image_text(workspace)
    config = SimpleNamespace(text_config=towers()["teacher"], vision_config=SimpleNamespace(image_size=IMAGE_SIZE))
    data.check_towers(config)
    config.vision_config.image_size = 64
    with pytest.raises(ValueError, match=r"are 32 pixels wide, but the image tower takes 64: set data.image_size=64"):
        data.check_towers(config)


def test_augmentation_changes_pictures_and_repeats_them_exactly(workspace: Workspace):
    augment = "data.augment={rotate_degrees: 9, shift: 0.1, scale: [0.9, 1.1], brightness: 0.2, contrast: 0.2,"
    augment += " saturation: 0.2, grey_probability: 0.1}"
    positions = list(range(3))
    plain = image_text(workspace).train_set.__getitems__(positions)
    changed, again = (image_text(workspace, augment).train_set.__getitems__(positions) for _ in range(2))
    assert changed.keys == plain.keys
    assert not torch.equal(changed.pixel_values, plain.pixel_values)
    assert torch.equal(changed.pixel_values, again.pixel_values)


def test_pictures_travel_as_bytes_and_train_as_evaluation_sees_them(workspace: Workspace):
    data = image_text(workspace)
    batch = data.train_set.__getitems__([0, 1, 2])
    assert batch.pixel_values.dtype == torch.uint8
    samples = [data.train_set.undecoded(position)[2] for position in range(3)]
    expected = torch.stack([data.image_transform(decode_image(members)) for members in samples])
    assert torch.equal(data.on_after_batch_transfer(batch, 0).pixel_values, expected)
    cached = batch._replace(pixel_values=None)
    assert data.on_after_batch_transfer(cached, 0) is cached


def test_draft_is_the_transform_s_own_size(workspace: Workspace):
    assert image_text(workspace).train_set.decoder.draft is None
    draft = image_text(workspace, "data.draft_jpeg=true").train_set.decoder.draft
    assert draft(640, 480) == (IMAGE_SIZE * 640 // 480, IMAGE_SIZE)


def test_weights_of_languages_that_are_not_drawn_are_refused(workspace: Workspace):
    weights = image_text(workspace, "data.language_weights={cn: 2.0}").train_set.decoder.language_weights
    assert weights == {"zh": 2.0}
    with pytest.raises(ValueError, match=r"names ja, which languages=\['en', 'zh'\] lacks"):
        image_text(workspace, "data.language_weights={ja: 2.0}")


def test_streaming_gives_batches_of_the_same_kind(workspace: Workspace):
    streamed = next(iter(image_text(workspace, "data.mode=streaming").train_dataloader()))
    planned = next(iter(image_text(workspace).train_dataloader()))
    assert type(streamed) is type(planned)
    assert streamed.pixel_values.shape == planned.pixel_values.shape
    assert len(streamed.keys) == BATCH


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_fraction_outside_its_range_is_refused(workspace: Workspace, fraction: float):
    with pytest.raises(InstantiationException, match="from 0 to 1"):
        workspace.data("stage=teacher", f"data.max_bad_fraction={fraction}")


@pytest.mark.parametrize("key", ["data.tokenizer_directory", "data.image_size"])
def test_missing_part_of_the_processor_is_named(workspace: Workspace, key: str):
    with pytest.raises(ValueError, match=f"{key} and data.model are both null"):
        image_text(workspace, f"{key}=null")


def test_own_texts_without_languages_are_refused(workspace: Workspace):
    with pytest.raises(InstantiationException, match="name the languages of your data"):
        workspace.data("stage=teacher", "data.starter=null")


def test_own_texts_without_a_student_need_a_tokenizer(workspace: Workspace):
    with pytest.raises(ValueError, match="give student=DIR, a directory with a sentencepiece model"):
        workspace.data("stage=teacher", "data.starter=null", "data.languages=[en,zh]")


def test_batch_below_one_is_refused(workspace: Workspace):
    with pytest.raises(InstantiationException, match=r"data\.global_batch_size=0: expected at least 1"):
        workspace.data("stage=teacher", "data.global_batch_size=0")


def test_tokenizers_of_trained_models_cut_where_training_did(workspace):
    for stage in ("teacher", "contrastive"):
        data = workspace.data(f"stage={stage}", "data.max_length=40", f"start={workspace.clip}")
        assert data.tokenizer.model_max_length == 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.embeddings=write", r"data\.embeddings='write': expected read, fill or null"),
        ("data.embeddings_dtype=int8", r"data\.embeddings_dtype='int8': expected float16 or float32"),
    ],
)
def test_unknown_settings_of_the_cache_are_refused(workspace, override, message):
    with pytest.raises(Exception, match=message):
        workspace.data("stage=teacher", override)


def test_a_stream_fills_no_cache(workspace):
    with pytest.raises(Exception, match=r"data\.embeddings=fill needs data\.mode=indexed"):
        workspace.data("stage=teacher", "data.embeddings=fill", "data.mode=streaming")

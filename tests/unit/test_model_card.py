"""A model card says what is recorded, and that the rest is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from altclip_train.markdown import code, table, text
from altclip_train.model_card import RunFacts, Scores, Usage, directory_usage, model_card
from altclip_train.models import AltCLIPModel
from tests.tiny_models import tiny_altclip, tiny_clip

GOLDEN = Path(__file__).parent / "goldens" / "model_card.md"
TEACHER = RunFacts(
    stage="teacher",
    config={
        "name": "altclip_teacher",
        "seed": 42,
        "clip": "/models/clip",
        "student": "FacebookAI/xlm-roberta-base",
        "stage": {
            "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-4, "betas": [0.9, 0.98]},
            "schedule": {"_target_": "altclip_train.optim.warmup_linear", "_partial_": True, "warmup_steps": 500},
            "weight_decay": 0.2,
        },
        "data": {
            "parallel_texts": [
                {"urls": "/data/{000..099}.tar", "weight": 3},
                {"urls": ["s3://user:secret@bucket/a.tar?X-Amz-Signature=secret"], "weight": 1, "languages": ["no"]},
            ],
            "global_batch_size": 1024,
            "max_length": 75,
        },
        "trainer": {"precision": "bf16-mixed", "gradient_clip_val": 1.0},
    },
    sha256={"clip": "c0ffee", "student": None},
    software={"altclip_train": "0.1.0", "commit": None, "torch": "2.13.0"},
    samples=[120_000, 4_000],
    languages=["en", "no"],
    steps=5_000,
)
CONTRASTIVE = RunFacts(
    stage="contrastive",
    config={
        "name": "tuned|<b>",
        "stage": {"locked": ["vision_model", "visual_projection"]},
        "data": {"model": "runs/1/model", "image_texts": ["/data/pairs.tar"]},
    },
    languages=["zh"],
    scores=[
        Scores(benchmark="coco_cn", language="zh", split="test", metrics={"R@10": 0.9, "R@1": 0.639}),
        Scores(benchmark="imagenet", language="no", metrics={"top1": 0.5}),
        Scores(benchmark="flickr", language="en", split="test", metrics={"R@1": 1.0, "R@10": 1.0}),
    ],
    earlier=TEACHER,
)


@pytest.fixture(scope="module")
def model() -> AltCLIPModel:
    return tiny_altclip(
        text={"vocab_size": 1200, "max_position_embeddings": 40}, vision={"image_size": 32, "patch_size": 16}
    )


def front_matter(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_whole_card_of_two_stages(model: AltCLIPModel):
    assert model_card(model, CONTRASTIVE, directory_usage(model)) == GOLDEN.read_text(encoding="utf-8")


def test_what_a_hub_reads(model: AltCLIPModel):
    fields = front_matter(model_card(model, CONTRASTIVE, directory_usage(model)))
    assert fields == {
        "language": ["en", "no", "zh"],  # "no" is a string, not false
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["altclip", "multilingual"],
        "base_model": ["FacebookAI/xlm-roberta-base"],  # a hub id; the clip is a directory of this machine
    }


def test_weights_without_a_record_say_so(model: AltCLIPModel):
    card = model_card(model, None, Usage(text="load it", tags=["onnx"]))
    assert front_matter(card) == {"pipeline_tag": "zero-shot-image-classification", "tags": ["altclip", "onnx"]}
    assert "came without a record of their training" in card
    assert "No benchmark results are recorded" in card
    assert "Which languages the training data hold is not recorded." in card
    assert "| made from | not recorded |" in card
    assert "licence of these weights is not known" in card


def test_one_stage_without_known_languages_leaves_the_languages_unknown(model: AltCLIPModel):
    card = model_card(model, replace(CONTRASTIVE, languages=None), directory_usage(model))
    assert "language" not in front_matter(card)
    assert "| languages trained | not recorded |" in card


def test_stage_one_alone_says_that_it_saw_no_pictures(model: AltCLIPModel):
    saw_none = "never saw a picture"
    assert saw_none in model_card(model, TEACHER, directory_usage(model))
    assert saw_none not in model_card(model, CONTRASTIVE, directory_usage(model))


def test_a_student_of_random_weights_is_called_that(model: AltCLIPModel):
    fresh = replace(TEACHER, config={**TEACHER.config, "student": None})
    assert "| made from | `/models/clip`, a text tower of random weights |" in model_card(
        model, fresh, directory_usage(model)
    )


def test_a_clip_is_called_a_clip():
    clip = tiny_clip()
    card = model_card(clip, None, directory_usage(clip))
    assert front_matter(card)["tags"] == ["clip"]
    assert "# CLIP\n" in card
    assert "from transformers import CLIPModel, CLIPProcessor" in card


def test_signatures_and_passwords_in_urls_stay_out(model: AltCLIPModel):
    card = model_card(model, TEACHER, directory_usage(model))
    assert "s3://bucket/a.tar" in card
    assert "secret" not in card


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("two\nlines", "two lines"),
        ("[x](y) <b> `c` *d*", r"\[x\](y) \<b\> \`c\` \*d\*"),
        ("warmup_linear", "warmup_linear"),
        ("_emphasis_", r"\_emphasis\_"),
    ],
)
def test_words_of_users_mean_nothing_in_markdown(value: str, escaped: str):
    assert text(value) == escaped


@pytest.mark.parametrize(
    ("value", "span"), [("a.tar", "`a.tar`"), ("a`b", "`` a`b ``"), ("a|b", r"`a\|b`"), ("a\n| b", r"`a \| b`")]
)
def test_code_spans_hold_anything(value: str, span: str):
    assert code(value) == span


def test_every_row_of_a_table_has_its_cells():
    lines = table(["a", "b"], [(text("x|y"), code("p|q"))]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", r"| x\|y | `p\|q` |"]

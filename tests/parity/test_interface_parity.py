"""The documented interface against transformers, every output of every class, on tiny perturbed models."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import altclip_train
from altclip_train.models import (
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionModel,
    CLIPModel,
)
from altclip_train.types import PackedTokens
from tests.documented_example import make_directory, run_example
from tests.parity.references import (
    CLIP_TEXTS,
    EOS_RULES,
    VISION,
    XLMR,
    padded,
    perturb,
    pictures,
    reference_clip,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TOLERANCE = 1e-5
LONGEST = 15  # 17 positions, the first two are not used
# Lengths go up and down, so that padding stands in the middle of the batch; one text is a single token.
TEXTS = [[0, 7, 9, 2], [0, 50, 51, 52, 53, 54, 55, 2], [5], [0, 8, 9, 2], [0, 5, 2]]


class Pair(NamedTuple):
    """The same weights three times; only eager attention of transformers gives its weights back."""

    ours: AltCLIPModel
    sdpa: Any
    eager: Any


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    config = transformers.AltCLIPConfig(
        text_config={**XLMR, "type_vocab_size": 2, "project_dim": 20}, vision_config=VISION, projection_dim=16
    )
    model = transformers.AltCLIPModel(config).eval()
    perturb(model, seed=1)
    model.save_pretrained(folder)
    eager = transformers.AltCLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    return Pair(AltCLIPModel.from_pretrained(folder), model, eager)


def assert_same(found: Any, expected: Any, where: str = "output") -> None:
    """Equal structure, names and order included, and every tensor within the tolerance."""
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape, where
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, tuple):
        assert isinstance(found, tuple), where
        assert len(found) == len(expected), where
        for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            assert_same(ours, theirs, f"{where}[{place}]")
    else:
        assert list(found.keys()) == list(expected.keys()), where
        assert list(found) == list(expected), where
        assert len(found) == len(expected), where
        for name in expected:
            assert_same(found[name], expected[name], f"{where}.{name}")
            assert getattr(found, name) is found[name], where
        assert_same(found.to_tuple(), expected.to_tuple(), f"{where}.to_tuple()")


def left_padded(texts: list[list[int]]) -> dict[str, Tensor]:
    return {name: value.flip(1) for name, value in padded([text[::-1] for text in texts], filler=1).items()}


def with_holes() -> dict[str, Tensor]:
    inputs = padded(TEXTS, filler=1)
    inputs["attention_mask"][1, [1, 4, 5]] = 0
    inputs["attention_mask"][3, 0] = 0
    return inputs


def random_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(length))


def text_cases() -> dict[str, dict[str, Any]]:
    right = padded(TEXTS, filler=1)
    rows, length = right["input_ids"].shape
    generator = torch.Generator().manual_seed(9)
    beyond = torch.cat([random_ids(2, LONGEST), torch.ones(2, 6).long()], dim=1)
    empty = {**right, "attention_mask": right["attention_mask"] * torch.tensor([1, 1, 1, 0, 1])[:, None]}
    return {
        "right padding": right,
        "bool mask": {**right, "attention_mask": right["attention_mask"].bool()},
        "float mask": {**right, "attention_mask": right["attention_mask"].float()},
        "left padding": left_padded(TEXTS),
        "holes": with_holes(),
        "padding without a mask": {"input_ids": right["input_ids"]},
        "a row without any token": empty,
        "single tokens": {"input_ids": torch.tensor([[0], [9]])},
        "longest": {"input_ids": random_ids(3, LONGEST)},
        "longest and padding beyond the positions": {"input_ids": beyond, "attention_mask": (beyond != 1).long()},
        "position ids": {**right, "position_ids": torch.randint(0, 17, (rows, length), generator=generator)},
        "one row of position ids": {**right, "position_ids": torch.arange(3, 3 + length)[None]},
        "token types": {**right, "token_type_ids": torch.randint(0, 2, (rows, length), generator=generator)},
        "vectors for ids": {"inputs_embeds": torch.randn(2, 7, 32, generator=generator)},
        "vectors and a mask": {
            "inputs_embeds": torch.randn(rows, length, 32, generator=generator),
            "attention_mask": left_padded(TEXTS)["attention_mask"],
        },
    }


@pytest.mark.parametrize("case", text_cases())
@torch.no_grad()
def test_text_tower(pair: Pair, case: str) -> None:
    inputs = text_cases()[case]
    expected = pair.sdpa.text_model(**inputs, output_hidden_states=True)
    assert expected.pooler_output.abs().max() > 0.1
    assert_same(pair.ours.text_model(**inputs, output_hidden_states=True), expected)
    assert_same(pair.ours.text_model(**inputs), pair.sdpa.text_model(**inputs))
    plain = pair.sdpa.text_model(**inputs, return_dict=False)
    assert_same(pair.ours.text_model(**inputs, return_dict=False), plain)
    inputs |= {"output_hidden_states": True, "output_attentions": True}
    assert_same(pair.ours.text_model(**inputs), pair.eager.text_model(**inputs))
    plain = pair.eager.text_model(**inputs, return_dict=False)
    assert_same(pair.ours.text_model(**inputs, return_dict=False), plain)


@pytest.mark.parametrize(
    ("height", "width", "interpolate"),
    [(18, 18, False), (18, 18, True), (24, 18, True), (31, 20, True), (36, 36, True), (19, 19, True), (6, 41, True)],
)
@torch.no_grad()
def test_vision_tower(pair: Pair, height: int, width: int, interpolate: bool) -> None:
    pixels = torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(3))
    for flags in ({}, {"output_hidden_states": True, "output_attentions": True}):
        expected = pair.eager.vision_model(pixels, interpolate_pos_encoding=interpolate, **flags)
        assert_same(pair.ours.vision_model(pixels, interpolate_pos_encoding=interpolate, **flags), expected)
        plain = pair.ours.vision_model(pixels, interpolate, **flags, return_dict=False)
        assert_same(plain, pair.eager.vision_model(pixels, interpolate, **flags, return_dict=False))
    features = pair.sdpa.get_image_features(pixels, interpolate).pooler_output
    assert_same(pair.ours.get_image_features(pixels, interpolate), features)


@pytest.mark.parametrize("flags", [{}, {"output_hidden_states": True, "output_attentions": True}], ids=["plain", "all"])
@pytest.mark.parametrize(("texts", "images"), [(4, 4), (5, 1), (1, 4), (3, 2)])
@torch.no_grad()
def test_whole_model(pair: Pair, texts: int, images: int, flags: dict[str, Any]) -> None:
    inputs: dict[str, Any] = {**padded(TEXTS[:texts], filler=1), "pixel_values": pictures()[:images], **flags}
    if texts == images:
        inputs["return_loss"] = True
    assert_same(pair.ours(**inputs), pair.eager(**inputs))
    assert_same(pair.ours(**inputs, return_dict=False), pair.eager(**inputs, return_dict=False))


@torch.no_grad()
def test_whole_model_takes_arguments_by_position(pair: Pair) -> None:
    inputs = padded(TEXTS[:4], filler=1)
    types = torch.ones_like(inputs["input_ids"])
    positions = torch.arange(4, 4 + types.shape[1])[None]
    pixels = torch.randn(4, 3, 12, 30, generator=torch.Generator().manual_seed(3))
    arguments = (inputs["input_ids"], pixels, inputs["attention_mask"], types, positions, True, True)
    assert_same(pair.ours(*arguments), pair.sdpa(*arguments))
    arguments = (inputs["input_ids"], inputs["attention_mask"], types, positions)
    assert_same(pair.ours.text_model(*arguments), pair.sdpa.text_model(*arguments))
    assert_same(pair.ours.get_text_features(*arguments), pair.sdpa.get_text_features(*arguments).pooler_output)


@torch.no_grad()
def test_indices_and_slices_follow_the_fields_that_are_there(pair: Pair) -> None:
    inputs: dict[str, Any] = {**padded(TEXTS[:4], filler=1), "pixel_values": pictures()}
    for return_loss in (False, True):
        found, expected = (model(**inputs, return_loss=return_loss) for model in (pair.ours, pair.sdpa))
        for key in (0, 1, -1, slice(1, 3), slice(None)):
            assert_same(found[key], expected[key], str(key))
        assert ("loss" in found) == ("loss" in expected) == return_loss
        assert (found.get("loss") is None) == (not return_loss)
        assert dict(found).keys() == dict(expected).keys()
    with pytest.raises(KeyError, match="hidden_states"):
        found.text_model_output["hidden_states"]
    with pytest.raises(KeyError, match="hidden_states"):
        expected.text_model_output["hidden_states"]


@pytest.mark.parametrize("case", [name for name, inputs in text_cases().items() if "input_ids" in inputs])
@torch.no_grad()
def test_text_features(pair: Pair, case: str) -> None:
    inputs = text_cases()[case]
    found = pair.ours.get_text_features(**inputs)
    expected = pair.sdpa.get_text_features(**inputs).pooler_output
    assert expected.abs().max() > 0.1
    assert_same(found, expected)
    assert_same(found.pooler_output, expected)


def assert_near_gradients(found: Tensor, expected: Tensor, name: str) -> None:
    scale = expected.abs().max()
    assert scale > 0, name
    assert ((found - expected) / scale).abs().max() < TOLERANCE, name


def test_gradients_of_padded_and_packed_forms_are_equal(pair: Pair) -> None:
    packed, whole = copy.deepcopy(pair.ours).double(), copy.deepcopy(pair.ours).double()
    pixels = pictures().double()
    target = torch.randn(4, 16, generator=torch.Generator().manual_seed(7)).double()
    text, image = packed.encode_text(PackedTokens.from_lists(TEXTS[:4])), packed.encode_image(pixels)
    ((text - target).square().sum() + (image - target).square().sum()).backward()
    text = whole.text_projection(whole.text_model(**padded(TEXTS[:4], filler=1)).pooler_output)
    image = whole.visual_projection(whole.vision_model(pixels).pooler_output)
    ((text - target).square().sum() + (image - target).square().sum()).backward()
    expected = dict(packed.named_parameters())
    for name, parameter in whole.named_parameters():
        if name != "logit_scale":
            assert_near_gradients(parameter.grad, expected[name].grad, name)


def test_gradients_of_every_position_equal_transformers(pair: Pair) -> None:
    """Also of padding, whose own word and position vectors get none."""
    inputs = left_padded(TEXTS)
    ours, theirs = copy.deepcopy(pair.ours.text_model).double(), copy.deepcopy(pair.sdpa.text_model).double()
    for model in (ours, theirs):
        model(**inputs).last_hidden_state.square().sum().backward()
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        tables = (ours.embeddings, theirs.roberta.embeddings)
        assert_near_gradients(*(getattr(table, name).weight.grad for table in tables), name)
    assert ours.embeddings.word_embeddings.weight.grad[1].abs().max() == 0


@torch.no_grad()
def test_new_rows_and_cut_rows_equal_transformers(tmp_path: Path, pair: Pair) -> None:
    inputs = {**padded(TEXTS[:4], filler=1), "pixel_values": pictures()}
    inputs["input_ids"] = inputs["input_ids"] % 30
    for size in (70, 40):
        ours, theirs = copy.deepcopy(pair.ours), copy.deepcopy(pair.sdpa)
        theirs.text_model.resize_token_embeddings(size)
        table = ours.text_model.resize_token_embeddings(size)
        assert table is ours.text_model.get_input_embeddings()
        assert ours.config.text_config.vocab_size == theirs.config.text_config.vocab_size == size
        # transformers draws new rows around the mean of the old ones, with 1e-9 of their variance
        torch.testing.assert_close(table.weight, theirs.text_model.get_input_embeddings().weight, rtol=0, atol=1e-4)
        inputs["input_ids"][1, 3] = size - 1
        ours.save_pretrained(tmp_path / str(size))
        again = transformers.AltCLIPModel.from_pretrained(tmp_path / str(size)).eval()
        assert again.config.text_config.vocab_size == size
        assert_same(ours(**inputs), again(**inputs))
        assert_same(AltCLIPModel.from_pretrained(tmp_path / str(size))(**inputs), again(**inputs))


@pytest.mark.parametrize("name", ["AltCLIPConfig", "AltCLIPTextConfig", "AltCLIPVisionConfig"])
def test_config_fields_and_defaults(name: str) -> None:
    ours, theirs = getattr(altclip_train, name), getattr(transformers, name)
    foreign = {entry.name for entry in dataclasses.fields(transformers.PreTrainedConfig)}
    documented = {entry.name for entry in dataclasses.fields(theirs)} - foreign
    found = ours()
    known = {entry.name for entry in dataclasses.fields(ours)}
    assert documented == known
    expected = theirs()
    for field in documented:
        if field not in ("text_config", "vision_config"):
            assert getattr(found, field) == getattr(expected, field), field
    assert found.model_type == expected.model_type


@pytest.mark.parametrize("name", ["AltCLIPConfig", "AltCLIPTextConfig", "AltCLIPVisionConfig"])
def test_configs_cross_over_both_ways(name: str, tmp_path: Path) -> None:
    ours, theirs = getattr(altclip_train, name), getattr(transformers, name)
    towers = {"text_config": {**XLMR, "project_dim": 20}, "vision_config": VISION}
    fields = {"AltCLIPTextConfig": XLMR, "AltCLIPVisionConfig": VISION}.get(name, {**towers, "projection_dim": 16})
    theirs(**fields).save_pretrained(tmp_path / "theirs")
    ours(**fields).save_pretrained(tmp_path / "ours")
    assert ours.from_pretrained(tmp_path / "theirs") == ours(**fields)
    read, written = theirs.from_pretrained(tmp_path / "ours").to_dict(), theirs(**fields).to_dict()
    for key, value in ours(**fields).to_dict().items():
        if key not in ("text_config", "vision_config", "architectures"):
            assert read[key] == written[key] == value, key
    if name != "AltCLIPConfig":  # a tower's config is also read out of a whole model's
        transformers.AltCLIPConfig(**towers).save_pretrained(tmp_path / "whole")
        from_whole = theirs.from_pretrained(tmp_path / "whole")
        found = ours.from_pretrained(tmp_path / "whole")
        assert all(getattr(from_whole, key) == value for key, value in found.to_dict().items())


@torch.no_grad()
def test_towers_load_out_of_a_whole_model_and_alone(tmp_path: Path, pair: Pair) -> None:
    """The oracle is the tower inside transformers' model, which also reads ours: `test_towers_parity.py`."""
    for writer, model in (("ours", pair.ours), ("theirs", pair.sdpa)):
        model.save_pretrained(tmp_path / writer)
        model.text_model.save_pretrained(tmp_path / writer / "text")
        model.vision_model.save_pretrained(tmp_path / writer / "vision")
        texts, pixels = padded(TEXTS, filler=1), pictures()
        for folder in (tmp_path / writer, tmp_path / writer / "text"):
            assert_same(AltCLIPTextModel.from_pretrained(folder)(**texts), pair.sdpa.text_model(**texts))
        for folder in (tmp_path / writer, tmp_path / writer / "vision"):
            assert_same(AltCLIPVisionModel.from_pretrained(folder)(pixels), pair.sdpa.vision_model(pixels))


@pytest.mark.parametrize("eos_token_id", EOS_RULES)
@torch.no_grad()
def test_clip(eos_token_id: int, tmp_path: Path) -> None:
    reference_clip(eos_token_id).save_pretrained(tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ours = CLIPModel.from_pretrained(tmp_path)
    flags = {"output_hidden_states": True, "output_attentions": True}
    inputs: dict[str, Any] = padded(CLIP_TEXTS[:4], filler=58)
    no_mask = {"input_ids": inputs["input_ids"]}
    moved = {**inputs, "position_ids": torch.arange(4, 12)[None]}
    for texts in (inputs, no_mask, moved):
        whole = {**texts, "pixel_values": pictures(), "return_loss": True, **flags}
        found, expected = ours(**whole), theirs(**whole)
        for name in ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
            assert_same(found[name], expected[name], name)
        for tower in ("text_model_output", "vision_model_output"):
            for name in ("last_hidden_state", "hidden_states", "attentions"):
                assert_same(found[tower][name], expected[tower][name], name)
        # Inside a whole CLIP, 5.23 puts the projected features in the towers' pooler_output; we keep the towers' own.
        assert_same(found.text_model_output.pooler_output, theirs.text_model(**texts).pooler_output)
        assert_same(ours.get_text_features(**texts), theirs.get_text_features(**texts).pooler_output)


def test_documented_example_gives_the_same_probabilities(tmp_path: Path) -> None:
    picture = make_directory(tmp_path / "tiny")
    found, expected = (run_example(name, tmp_path / "tiny", picture) for name in ("altclip_train", "transformers"))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)

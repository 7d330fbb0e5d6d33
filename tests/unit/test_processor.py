"""AltCLIPProcessor: documented names and shapes, padding, truncation, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
    train_clip_bpe,
    train_sentencepiece,
)

TEXTS = ["a photo of a cat", "the dog is near the house", "一张猫的照片"] * 10


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, XLMRTokenizer | CLIPTokenizer]:
    model_file = tmp_path_factory.mktemp("model") / "model"
    train_sentencepiece(TEXTS, model_file, 100)
    return {"xlmr": XLMRTokenizer(model_file), "clip": train_clip_bpe(TEXTS, 540)}


@pytest.fixture(params=["xlmr", "clip"])
def processor(request: pytest.FixtureRequest, tokenizers: dict[str, XLMRTokenizer | CLIPTokenizer]) -> AltCLIPProcessor:
    return AltCLIPProcessor(ImageTransform(size=6, crop_size=6), tokenizers[request.param], max_length=12)


def picture(width: int = 9, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_texts_and_pictures_give_the_documented_inputs(processor: AltCLIPProcessor) -> None:
    output = processor(text=["a cat", "the dog"], images=picture(), return_tensors="pt", padding=True)
    assert list(output) == ["input_ids", "attention_mask", "pixel_values"]
    assert output.input_ids.dtype == output.attention_mask.dtype == torch.int64
    assert output.input_ids.shape == output.attention_mask.shape
    assert output.pixel_values.shape == (1, 3, 6, 6)
    assert output["pixel_values"] is output.pixel_values


def test_shorter_texts_are_padded_on_the_right_and_masked(processor: AltCLIPProcessor) -> None:
    texts = ["a cat", "the dog is near the house"]
    short, long = processor.tokenizer.encode_batch(texts, 12)
    output = processor(text=texts)
    fill = len(long) - len(short)
    assert fill > 0
    assert output.input_ids.tolist() == [short + [processor.tokenizer.pad_id] * fill, long]
    assert output.attention_mask.tolist() == [[1] * len(short) + [0] * fill, [1] * len(long)]


def test_long_texts_are_cut_unless_truncation_is_off(processor: AltCLIPProcessor) -> None:
    text = "a photo of a cat " * 9
    assert processor(text=text).input_ids.shape == (1, 12)
    assert processor(text=text, max_length=5).input_ids.shape == (1, 5)
    assert processor(text=text, max_length=5).input_ids[0, -1] == processor.tokenizer.eos_id
    assert processor(text=text, truncation=False).input_ids.shape[1] > 40


def test_padding_to_max_length_gives_equal_widths(processor: AltCLIPProcessor) -> None:
    output = processor(text=["a cat"], padding="max_length")
    assert output.input_ids.shape == (1, 12)
    assert output.attention_mask.sum() == len(processor.tokenizer.encode_batch(["a cat"], 12)[0])


def test_without_padding_texts_stay_lists(processor: AltCLIPProcessor) -> None:
    texts = ["a cat", "the dog is near the house"]
    output = processor(text=texts, padding=False, return_tensors=None)
    assert output.input_ids == processor.tokenizer.encode_batch(texts, 12)
    assert [sum(mask) for mask in output.attention_mask] == [len(ids) for ids in output.input_ids]
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=texts, padding=False)


def test_numpy_and_list_outputs_hold_the_same_values(processor: AltCLIPProcessor) -> None:
    arguments = {"text": ["a cat", "the dog"], "images": [picture(), picture(5, 11)]}
    tensors = processor(**arguments)
    arrays = processor(**arguments, return_tensors="np")
    lists = processor(**arguments, return_tensors=None)
    for name in tensors:
        assert isinstance(arrays[name], np.ndarray)
        assert isinstance(lists[name], list)
        assert np.array_equal(arrays[name], tensors[name].numpy())
        assert np.array_equal(np.array(lists[name]), arrays[name])


def test_one_picture_a_list_and_an_array_are_taken(processor: AltCLIPProcessor) -> None:
    one = processor(images=picture()).pixel_values
    assert one.equal(processor(images=[picture()]).pixel_values)
    assert one.equal(processor(images=np.asarray(picture())).pixel_values)
    assert "input_ids" not in processor(images=picture())


def test_saving_and_loading_changes_nothing(processor: AltCLIPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AltCLIPProcessor.from_pretrained(tmp_path, max_length=12)
    assert type(again.tokenizer) is type(processor.tokenizer)
    before, after = (one(text=TEXTS[:3], images=picture()) for one in (processor, again))
    assert all(before[name].equal(after[name]) for name in before)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 12


def test_the_length_limit_is_77_by_default(processor: AltCLIPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    assert AltCLIPProcessor.from_pretrained(tmp_path)(text="a cat " * 99).input_ids.shape == (1, 77)


def test_outputs_move_to_a_device_together(processor: AltCLIPProcessor) -> None:
    moved = processor(text="a cat", images=picture()).to("meta")
    assert {value.device.type for value in moved.values()} == {"meta"}


def test_bad_arguments_are_named(processor: AltCLIPProcessor) -> None:
    with pytest.raises(ValueError, match="text, images or both"):
        processor()
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(text="a cat", return_tensors="tf")
    with pytest.raises(ValueError, match="padding='longer'"):
        processor(text="a cat", padding="longer")
    with pytest.raises(ValueError, match="float32 array"):
        processor(images=np.zeros((3, 4, 3), dtype=np.float32))
    with pytest.raises(AttributeError, match="input_ids"):
        _ = processor(images=picture()).input_ids

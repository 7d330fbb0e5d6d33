"""AltCLIPProcessor: documented names, defaults and shapes, padding, truncation, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    ImageTransform,
    ProcessorOutput,
    XLMRTokenizer,
    train_clip_bpe,
    train_sentencepiece,
)

TEXTS = ["a photo of a cat", "the dog is near the house", "一张猫的照片"] * 10


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, XLMRTokenizer | CLIPTokenizer]:
    model_file = tmp_path_factory.mktemp("model") / "model"
    train_sentencepiece(TEXTS, model_file, 100)
    loaded = {"xlmr": XLMRTokenizer(model_file), "clip": train_clip_bpe(TEXTS, 540)}
    for tokenizer in loaded.values():
        tokenizer.model_max_length = 12
    return loaded


@pytest.fixture(params=["xlmr", "clip"])
def processor(request: pytest.FixtureRequest, tokenizers: dict[str, XLMRTokenizer | CLIPTokenizer]) -> AltCLIPProcessor:
    transform = ImageTransform(size=6, crop_size=6)
    return AltCLIPProcessor(CLIPImageProcessor(transform), tokenizers[request.param])


def picture(width: int = 9, height: int = 7) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_texts_and_pictures_give_the_documented_inputs(processor: AltCLIPProcessor) -> None:
    output = processor(text=["a cat", "the dog"], images=picture(), return_tensors="pt", padding=True)
    assert list(output) == ["input_ids", "attention_mask", "pixel_values"]
    assert set(output) == set(processor.model_input_names)
    assert output.input_ids.dtype == output.attention_mask.dtype == torch.int64
    assert output.input_ids.shape == output.attention_mask.shape
    assert output.pixel_values.shape == (1, 3, 6, 6)
    assert output.pixel_values.dtype == torch.float32
    assert output["pixel_values"] is output.pixel_values


def test_nothing_is_padded_or_cut_or_made_a_tensor_unless_asked(processor: AltCLIPProcessor) -> None:
    texts = ["a cat", "a photo of a cat " * 9]
    output = processor(text=texts, images=[picture()])
    assert output.input_ids == processor.tokenizer.encode_batch(texts, 1000)
    assert output.attention_mask == [[1] * len(ids) for ids in output.input_ids]
    assert len(output.input_ids[1]) > processor.tokenizer.model_max_length
    assert isinstance(output.pixel_values, list)
    assert isinstance(output.pixel_values[0], np.ndarray)


def test_one_text_without_tensors_gives_flat_lists(processor: AltCLIPProcessor) -> None:
    (ids,) = processor.tokenizer.encode_batch(["a cat"], 77)
    assert processor(text="a cat").input_ids == ids
    assert processor(text="a cat", return_tensors="pt").input_ids.tolist() == [ids]
    assert processor(text=["a cat"]).input_ids == [ids]


def test_shorter_texts_are_padded_on_the_right_and_masked(processor: AltCLIPProcessor) -> None:
    texts = ["a cat", "the dog is near the house"]
    short, long = processor.tokenizer.encode_batch(texts, 77)
    fill = len(long) - len(short)
    assert fill > 0
    for padding in (True, "longest"):
        output = processor(text=texts, padding=padding)
        assert output.input_ids == [short + [processor.tokenizer.pad_token_id] * fill, long]
        assert output.attention_mask == [[1] * len(short) + [0] * fill, [1] * len(long)]


def test_truncation_cuts_to_max_length_or_to_what_the_tokenizer_says(processor: AltCLIPProcessor) -> None:
    text = "a photo of a cat " * 9

    def length(**options: Any) -> int:
        ids = processor(text=text, **options).input_ids
        assert ids[-1] == processor.tokenizer.eos_token_id
        return len(ids)

    assert length(truncation=True) == 12
    assert length(truncation="longest_first", max_length=5) == 5
    assert length(max_length=5) == 5
    assert length(max_length=5, truncation=False) > 40
    assert length(max_length=5, truncation="do_not_truncate") > 40
    assert length(max_length=5, padding=True) > 40
    assert length(max_length=5, padding=True, truncation=True) == 5


def test_padding_to_max_length_gives_equal_widths(processor: AltCLIPProcessor) -> None:
    (ids,) = processor.tokenizer.encode_batch(["a cat"], 77)
    cases: list[tuple[dict[str, Any], int]] = [({}, 12), ({"max_length": 9}, 9), ({"max_length": 3}, len(ids))]
    for options, width in cases:
        output = processor(text=["a cat"], padding="max_length", return_tensors="np", **options)
        assert output.input_ids.shape == (1, width)
        assert output.attention_mask.sum() == len(ids)
        assert output.input_ids.dtype == np.int64


def test_texts_of_unequal_length_are_no_tensor(processor: AltCLIPProcessor) -> None:
    with pytest.raises(ValueError, match="padding=True"):
        processor(text=["a cat", "the dog is near the house"], return_tensors="pt")


def test_numpy_and_list_outputs_hold_the_same_values(processor: AltCLIPProcessor) -> None:
    arguments: dict[str, Any] = {"text": ["a cat", "the dog"], "images": [picture(), picture(5, 11)], "padding": True}
    tensors = processor(**arguments, return_tensors="pt")
    arrays = processor(**arguments, return_tensors="np")
    lists = processor(**arguments)
    for name in tensors:
        assert isinstance(arrays[name], np.ndarray)
        assert isinstance(lists[name], list)
        assert np.array_equal(arrays[name], tensors[name].numpy())
        assert np.array_equal(np.array(lists[name]), arrays[name])


def test_tokenizer_and_image_processor_are_called_alone(processor: AltCLIPProcessor) -> None:
    together = processor(text=["a cat", "dog"], images=[picture()], padding=True, return_tensors="pt")
    texts = processor.tokenizer(["a cat", "dog"], padding=True, return_tensors="pt")
    pictures = processor.image_processor([picture()], return_tensors="pt")
    assert list(texts) == ["input_ids", "attention_mask"]
    assert list(pictures) == ["pixel_values"]
    assert all(together[name].equal(value) for name, value in {**texts, **pictures}.items())
    assert processor.image_processor.size == {"shortest_edge": 6}
    assert processor.image_processor.crop_size == {"height": 6, "width": 6}


def test_two_arguments_by_position_are_taken_in_either_order(processor: AltCLIPProcessor) -> None:
    named = processor(text=["a cat"], images=picture())
    positional: list[tuple[Any, Any]] = [(picture(), ["a cat"]), (["a cat"], picture())]
    for output in (processor(*arguments) for arguments in positional):
        assert output.input_ids == named.input_ids
        assert np.array_equal(output.pixel_values, named.pixel_values)


def test_ids_are_decoded_as_one_row_or_several(processor: AltCLIPProcessor) -> None:
    output = processor(text=["a cat", "the dog is"], padding=True, return_tensors="pt")
    assert processor.batch_decode(output.input_ids, skip_special_tokens=True) == ["a cat", "the dog is"]
    assert processor.decode(output.input_ids, skip_special_tokens=True) == ["a cat", "the dog is"]
    assert processor.decode(output.input_ids[0], skip_special_tokens=True) == "a cat"
    assert processor.batch_decode(output.input_ids[0].tolist(), skip_special_tokens=True) == ["a cat"]
    assert processor.decode(int(output.input_ids[0, 0]), skip_special_tokens=True) == ""
    assert "cat" in str(processor.decode(output.input_ids[0].numpy()))
    assert processor.decode(output.input_ids[0]) != "a cat"  # special tokens stay unless told


def test_saving_and_loading_changes_nothing(processor: AltCLIPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AltCLIPProcessor.from_pretrained(tmp_path)
    assert type(again.tokenizer) is type(processor.tokenizer)
    arguments: dict[str, Any] = {"text": TEXTS[:3], "padding": True, "truncation": True, "return_tensors": "pt"}
    before, after = (one(images=picture(), **arguments) for one in (processor, again))
    assert all(before[name].equal(after[name]) for name in before)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 12


def test_another_picture_size_is_taken_in_place_of_the_directorys(processor: AltCLIPProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    crop = {"height": 4, "width": 4}
    smaller = AltCLIPProcessor.from_pretrained(tmp_path, size={"shortest_edge": 4}, crop_size=crop)
    assert smaller(images=picture(), return_tensors="pt").pixel_values.shape == (1, 3, 4, 4)


def test_outputs_move_together_and_only_floats_change_their_type(processor: AltCLIPProcessor) -> None:
    def output() -> ProcessorOutput:
        return processor(text="a cat", images=picture(), return_tensors="pt")

    moved = output()
    assert moved.to("meta") is moved
    assert {value.device.type for value in moved.values()} == {"meta"}
    for half in (output().to(torch.float16), output().to("cpu", torch.float16), output().to(dtype=torch.float16)):
        assert half.pixel_values.dtype == torch.float16
        assert half.input_ids.dtype == torch.int64


def test_bad_arguments_are_named(processor: AltCLIPProcessor) -> None:
    with pytest.raises(ValueError, match="text, images or both"):
        processor()
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(text="a cat", return_tensors="tf")
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        processor(images=picture(), return_tensors="tf")
    with pytest.raises(ValueError, match="padding='longer'"):
        processor(text="a cat", padding="longer")
    with pytest.raises(ValueError, match="truncation='shortest'"):
        processor(text="a cat", truncation="shortest")
    with pytest.raises(ValueError, match="no text given"):
        processor(text=[])
    with pytest.raises(ValueError, match="no pictures given"):
        processor(images=[])
    with pytest.raises(AttributeError, match="input_ids"):
        _ = processor(images=picture()).input_ids

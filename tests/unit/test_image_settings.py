"""The image transform that a directory of open_clip describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altclip_train.processing import ImageTransform

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def write(folder: Path, preprocessing: Any, image_size: Any = 20) -> None:
    content = {"model_cfg": {"vision_cfg": {"image_size": image_size}}, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("preprocessing", [None, {}, {"mean": None, "resize_mode": None, "interpolation": None}])
def test_what_is_left_out_has_openais_values(preprocessing: Any, tmp_path: Path) -> None:
    write(tmp_path, preprocessing)
    found = ImageTransform.from_pretrained(tmp_path)
    assert (found.size, found.crop_size, found.resample) == (20, 20, Image.Resampling.BICUBIC)
    assert (found.mean, found.std) == (OPENAI_MEAN, OPENAI_STD)


def test_every_setting_is_taken(tmp_path: Path) -> None:
    settings = {"mean": [0.5, 0.4, 0.3], "std": 0.25, "interpolation": "bilinear", "resize_mode": "squash", "size": 999}
    write(tmp_path, settings, [20, 20])
    found = ImageTransform.from_pretrained(tmp_path)
    assert (found.size, found.crop_size, found.resample) == ((20, 20), 20, Image.Resampling.BILINEAR)
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25))


def test_own_file_of_the_directory_comes_first(tmp_path: Path) -> None:
    ImageTransform(size=8, crop_size=7).save_pretrained(tmp_path)
    write(tmp_path, {})
    assert ImageTransform.from_pretrained(tmp_path).crop_size == 7


@pytest.mark.parametrize(
    ("preprocessing", "image_size", "message"),
    [
        ({"resize_mode": "longest"}, 20, "resize_mode='longest' is not supported, only shortest or squash"),
        ({"resize_mode": ["squash"]}, 20, r"resize_mode=\['squash'\] is not supported"),
        ({"interpolation": "nearest"}, 20, "interpolation='nearest', expected bicubic or bilinear"),
        ({}, [20, 30], r"image_size=\[20, 30\], expected one number for both edges"),
        ({}, "20", "image_size=20, expected one number"),
        ([1], 20, "preprocess_cfg and model_cfg must be objects"),
    ],
)
def test_what_cannot_be_followed_is_named(preprocessing: Any, image_size: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, preprocessing, image_size)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{message}"):
        ImageTransform.from_pretrained(tmp_path)


def test_advice_for_a_directory_without_settings_works(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="copy the preprocessor_config") as caught:
        ImageTransform.from_pretrained(tmp_path)
    exec(str(caught.value).partition("values: ")[2], {"ImageTransform": ImageTransform})
    found = ImageTransform.from_pretrained(tmp_path)
    assert (found.crop_size, found.mean, found.std) == (224, OPENAI_MEAN, OPENAI_STD)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json", "open_clip_config.json"])
def test_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON"):
        ImageTransform.from_pretrained(tmp_path)

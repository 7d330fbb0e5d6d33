"""The hash of the tokenizer in the header of weights, and what a processor makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from altclip_train import hub
from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    ImageTransform,
    load_tokenizer,
    train_clip_bpe,
)
from altclip_train.processing.tokenizer_guard import trained_tokenizer

WEIGHTS = {"weight": np.zeros(2, np.float32)}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_clip_bpe(["a photo of a cat"] * 9, 530)


@pytest.fixture
def directory(tokenizer: CLIPTokenizer, tmp_path: Path) -> Path:
    AltCLIPProcessor(CLIPImageProcessor(ImageTransform(size=6, crop_size=6)), tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_weights_that_do_not_say_take_any_tokenizer(directory: Path, tokenizer: CLIPTokenizer) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\nsize 5\n"
    assert trained_tokenizer(directory) is None
    for write in (
        lambda file: save_file(WEIGHTS, file),
        lambda file: save_file(WEIGHTS, file, metadata={"format": "pt"}),
        lambda file: file.write_bytes(pointer),  # only those who read the weights need them
        lambda file: file.write_bytes(b""),
    ):
        write(directory / "model.safetensors")
        assert trained_tokenizer(directory) is None
        assert AltCLIPProcessor.from_pretrained(directory).tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("sharded", [False, True])
def test_only_the_tokenizer_of_the_weights_is_taken(directory: Path, tokenizer: CLIPTokenizer, sharded: bool) -> None:
    name = "model-00001-of-00002.safetensors" if sharded else "model.safetensors"
    if sharded:
        index = {"weight_map": {"weight": name, "other": "model-00002-of-00002.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(WEIGHTS, directory / name, metadata={"tokenizer_sha256": tokenizer.fingerprint})
    assert trained_tokenizer(directory) == tokenizer.fingerprint
    assert load_tokenizer(directory).fingerprint == tokenizer.fingerprint
    save_file(WEIGHTS, directory / name, metadata={"tokenizer_sha256": "f" * 64})
    message = (
        rf"the weights in {directory} .* {tokenizer.fingerprint}, .* trained with f{{64}}\. Use the tokenizer files"
    )
    for load in (load_tokenizer, AltCLIPProcessor.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(directory)


def test_a_hub_id_becomes_its_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fetch", lambda hub_id, _: {"org/model": directory}[hub_id])
    assert AltCLIPProcessor.from_pretrained("org/model").image_processor.crop_size == {"height": 6, "width": 6}

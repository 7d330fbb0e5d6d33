"""The encoder with stand-in towers whose features are known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from altclip_train.evaluation import Encoder
from altclip_train.types import PackedTokens


class AngleModel(nn.Module):
    """Features (2-D) at an angle that the input states, times a length that normalisation must remove."""

    def __init__(self) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.tensor(3.0))
        self.frozen = nn.Dropout(0.5).eval()
        self.text_batches: list[list[int]] = []
        self.image_batches: list[int] = []
        self.modes: list[bool] = []

    def _features(self, angles: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.length * torch.stack([angles.cos(), angles.sin()], dim=1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        self.image_batches.append(len(pixel_values))
        return self._features(pixel_values[:, 0, 0, 0])

    def encode_text(self, tokens: PackedTokens) -> Tensor:
        self.text_batches.append(tokens.lengths.tolist())
        return self._features(tokens.lengths / 10)


def encode_batch(texts: list[str], max_length: int) -> list[list[int]]:
    return [[1] * min(len(text), max_length) for text in texts]


def red_channel(image: Image.Image) -> Tensor:
    red = image.getpixel((0, 0))
    assert isinstance(red, tuple)
    return torch.full((3, 2, 2), red[0] / 100)


def make_encoder(**arguments: Any) -> tuple[Encoder, AngleModel]:
    model = AngleModel()
    processor: Any = SimpleNamespace(
        image_processor=SimpleNamespace(transform=red_channel), tokenizer=SimpleNamespace(encode_batch=encode_batch)
    )
    stand_in: Any = model
    return Encoder(stand_in, processor, max_length=7, **arguments), model


def pictures(reds: list[int]) -> list[Image.Image]:
    return [Image.new("RGB", (2, 2), (red, 0, 0)) for red in reds]


def unit_vectors(angles: list[float]) -> Tensor:
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])


def test_image_features_are_normalised_and_in_order() -> None:
    encoder, model = make_encoder(batch_size=2)
    features = encoder.encode_images(pictures([10, 30, 20, 50, 40]))
    torch.testing.assert_close(features, unit_vectors([0.1, 0.3, 0.2, 0.5, 0.4]))
    assert model.image_batches == [2, 2, 1]
    assert not features.requires_grad


def test_pictures_may_be_functions_that_return_them() -> None:
    encoder, _ = make_encoder(batch_size=2)
    images = pictures([10, 30, 20])
    loaders = [lambda image=image: image for image in images]
    assert torch.equal(encoder.encode_images(loaders), encoder.encode_images(images))


def test_error_of_a_picture_reaches_the_caller() -> None:
    def damaged() -> Image.Image:
        raise ValueError("0.tar: picture s0000001 is damaged")

    encoder, _ = make_encoder(batch_size=2)
    with pytest.raises(ValueError, match="s0000001 is damaged"):
        encoder.encode_images([*pictures([10, 30]), damaged, *pictures([20])])


def test_text_features_come_back_in_the_callers_order() -> None:
    encoder, model = make_encoder(batch_size=2)
    features = encoder.encode_texts(["abc", "a", "abcde", "ab", "abcd"])
    torch.testing.assert_close(features, unit_vectors([0.3, 0.1, 0.5, 0.2, 0.4]))
    assert model.text_batches == [[5, 4], [3, 2], [1]]  # longest first


def test_texts_are_cut_at_the_processors_length() -> None:
    encoder, model = make_encoder()
    encoder.encode_texts(["a" * 30])
    assert model.text_batches == [[7]]


def test_each_module_keeps_its_own_mode() -> None:
    encoder, model = make_encoder()
    model.train()
    model.frozen.eval()
    encoder.encode_texts(["a"])
    assert model.modes == [False]
    assert model.training
    assert not model.frozen.training


def test_mode_is_restored_after_an_error() -> None:
    encoder, model = make_encoder()
    with pytest.raises(ValueError, match="no pictures"):
        encoder.encode_images([])
    assert model.training


def test_cached_images_are_encoded_once() -> None:
    cache: dict[str, Tensor] = {}
    encoder, model = make_encoder(image_cache=cache)
    first = encoder.encode_images(pictures([10, 30]), cache_key="a")
    assert torch.equal(encoder.encode_images([], cache_key="a"), first)
    encoder.encode_images(pictures([10]), cache_key="b")
    assert model.image_batches == [2, 1]
    assert set(cache) == {"a", "b"}


def test_without_a_cache_a_key_changes_nothing() -> None:
    encoder, model = make_encoder()
    encoder.encode_images(pictures([10]), cache_key="a")
    encoder.encode_images(pictures([30]), cache_key="a")
    assert model.image_batches == [1, 1]


def test_no_texts_are_refused() -> None:
    encoder, _ = make_encoder()
    with pytest.raises(ValueError, match="no texts"):
        encoder.encode_texts([])

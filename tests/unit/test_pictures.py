"""Every form of a picture gives the same pixels; what is no picture is refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.processing.pictures import open_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def forms(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "http_cat.png"
    path.write_bytes(png(Image.fromarray(PIXELS)))
    channels_first = np.moveaxis(PIXELS, -1, 0)
    return {
        "PIL": Image.fromarray(PIXELS),
        "array (H, W, C)": PIXELS,
        "array (C, H, W)": channels_first,
        "batch of arrays": PIXELS[None],
        "whole floats": PIXELS.astype(np.float32),
        "int64": PIXELS.astype(np.int64),
        "tensor (C, H, W)": torch.from_numpy(channels_first.copy()),
        "batch of tensors": torch.from_numpy(channels_first.copy())[None],
        "tensor with a graph": torch.from_numpy(PIXELS.astype(np.float32)).requires_grad_(),
        "bytes": path.read_bytes(),
        "path": path,
        "path as text": str(path),
        "nested": [[path]],
        "tuple": (PIXELS,),
    }


def test_every_form_gives_the_same_picture(tmp_path: Path) -> None:
    for name, form in forms(tmp_path).items():
        (picture,) = open_pictures(form)
        assert np.array_equal(np.asarray(picture), PIXELS), name


def test_lists_and_batches_keep_their_order() -> None:
    batch = np.stack([PIXELS, 255 - PIXELS])
    for form in (
        batch,
        list(batch),
        torch.from_numpy(batch),
        [batch[0], Image.fromarray(batch[1])],
        [batch[:1], batch[1:]],
    ):
        assert [np.asarray(picture).tolist() for picture in open_pictures(form)] == batch.tolist()


def test_one_and_four_channels_are_grey_and_transparent() -> None:
    assert open_pictures(PIXELS[..., 0])[0].mode == "L"
    assert open_pictures(PIXELS[..., :1])[0].mode == "L"
    assert open_pictures(np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1))[0].mode == "RGBA"


def test_floats_up_to_one_are_pictures_when_told_so() -> None:
    shares = PIXELS.astype(np.float64) / 255
    for form in (shares + 1e-9, torch.from_numpy(shares + 1e-9), torch.from_numpy(shares + 1e-9).float()):
        form = form.clip(0, 1)
        (picture,) = open_pictures(form, do_rescale=False)
        assert np.abs(np.asarray(picture).astype(int) - PIXELS).max() <= 1  # cut, not rounded
        with pytest.raises(ValueError, match=r"float.* values from .*pass do_rescale=False"):
            open_pictures(form)
    with pytest.raises(ValueError, match=r"do_rescale=False says .* found uint8 values"):
        open_pictures(PIXELS, do_rescale=False)


BAD = {
    "negative": (PIXELS.astype(np.int64) - 1, "int64 values from -1"),
    "too large": (PIXELS.astype(np.int64) * 2, "expected whole numbers from 0 to 255"),
    "fractions": (PIXELS + 0.5, "expected whole numbers"),
    "not a number": (np.full((4, 4, 3), np.nan), "nan"),
    "boolean": (PIXELS > 9, "bool values"),
    "two channels": (PIXELS[..., :2], r"shape \(9, 7, 2\)"),
    "one dimension": (PIXELS[0, 0], r"shape \(3,\)"),
    "no pixels": (PIXELS[:0], r"shape \(0, 7, 3\)"),
    "a number": (5, "<class 'int'>"),
    "bytes of something else": (b"GIF89 not really", "16 bytes is not a picture"),
    "half a file": (png(Image.fromarray(PIXELS))[:90], "90 bytes is a damaged picture"),
    "a URL": ("https://example.org/cat.png", "is a URL, and nothing is downloaded"),
    "base64": ("data:image/png;base64,iVBORw0KGgo=", "is a URL"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused(name: str) -> None:
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        open_pictures(value)


@pytest.mark.parametrize("text", ["a photo of a cat", "x" * 9999])
def test_a_text_among_the_pictures_is_told_where_it_belongs(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="pass it as text="):
        open_pictures([text])

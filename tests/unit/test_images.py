"""Picture modes, rotation, transparency; pixel values against hand arithmetic; preprocessor_config.json."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from altclip_train.processing import ImageTransform, to_rgb
from altclip_train.processing.image_settings import CLIP_MEAN, CLIP_STD

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def transform(size: int | tuple[int, int] = 6, crop_size: int = 6) -> ImageTransform:
    return ImageTransform(size=size, crop_size=crop_size, mean=MEAN, std=STD)


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def ramp16(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 256, dtype=np.uint16).reshape(16, 16))


def float_image(low: float, high: float) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16))


MODES = {
    # name: (picture, mean of each RGB channel, tolerance)
    "RGB": (Image.new("RGB", (9, 7), (200, 100, 50)), (200, 100, 50), 0),
    "grey": (Image.new("L", (9, 7), 77), (77, 77, 77), 0),
    "1-bit": (Image.new("1", (9, 7), 1), (255, 255, 255), 0),
    "palette": (Image.new("RGB", (9, 7), (255, 0, 102)).quantize(4), (255, 0, 102), 0),
    "CMYK": (Image.new("CMYK", (9, 7), (255, 0, 0, 0)), (0, 255, 255), 0),
    "CMYK jpeg": (
        reopened(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "jpeg", quality=100),
        (0, 255, 255),
        3,
    ),
    "YCbCr": (Image.new("RGB", (9, 7), (200, 100, 50)).convert("YCbCr"), (200, 100, 50), 2),
    "HSV": (Image.new("RGB", (9, 7), (200, 100, 50)).convert("HSV"), (200, 100, 50), 2),
    "opaque RGBA": (Image.new("RGBA", (9, 7), (200, 100, 50, 255)), (200, 100, 50), 0),
    "transparent red": (Image.new("RGBA", (9, 7), (255, 0, 0, 0)), (255, 255, 255), 0),
    "half transparent black": (Image.new("RGBA", (9, 7), (0, 0, 0, 128)), (127, 127, 127), 1),
    "transparent black LA": (Image.new("LA", (9, 7), (0, 0)), (255, 255, 255), 0),
    "premultiplied RGBa": (
        Image.new("RGBA", (9, 7), (0, 0, 0, 128)).convert("RGBa"),
        (127, 127, 127),
        1,
    ),
    "premultiplied La": (Image.new("LA", (9, 7), (0, 128)).convert("La"), (127, 127, 127), 1),
    "transparent gif": (
        reopened(Image.new("P", (9, 7), 0), "gif", transparency=0),
        (255, 255, 255),
        0,
    ),
    "png with a transparent grey": (
        reopened(Image.new("L", (9, 7), 60), "png", transparency=60),
        (255, 255, 255),
        0,
    ),
    "png with a transparent colour": (
        reopened(Image.new("RGB", (9, 7), (1, 2, 3)), "png", transparency=(1, 2, 3)),
        (255, 255, 255),
        0,
    ),
    "16-bit png": (reopened(ramp16(0, 65535), "png"), (127.5,) * 3, 0.5),
    "16-bit tiff": (reopened(ramp16(0, 65535), "tiff"), (127.5,) * 3, 0.5),
    "dark 16-bit": (ramp16(0, 2570), (5, 5, 5), 0.5),
    "32-bit of 16-bit values": (Image.new("I", (9, 7), 32896), (128,) * 3, 0),
    "32-bit of 8-bit values": (Image.new("I", (9, 7), 80), (80,) * 3, 0),
    "32-bit of larger values": (
        Image.fromarray(np.array([[0, 1_000_000]], dtype=np.int32)),
        (127.5,) * 3,
        0.5,
    ),
    "float in [0, 1]": (float_image(0, 1), (127.5,) * 3, 0.5),
    "float in [0, 255]": (reopened(float_image(0, 255), "tiff"), (127.5,) * 3, 0.5),
    "float with holes": (
        Image.fromarray(np.array([[np.nan, 1.0, -3.0, 0.2]], dtype=np.float32)),
        (306 / 4,) * 3,
        0.01,
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb_with_its_brightness(name: str) -> None:
    picture, means, tolerance = MODES[name]
    result = to_rgb(picture)
    assert result.mode == "RGB"
    assert result.size == picture.size
    channel_means = np.asarray(result, dtype=np.float64).mean(axis=(0, 1))
    assert channel_means == pytest.approx(means, abs=tolerance + 1e-9)


def test_a_16_bit_picture_keeps_its_gradation() -> None:
    levels = np.asarray(to_rgb(reopened(ramp16(0, 65535), "png")))[..., 0].ravel()
    assert levels.tolist() == list(range(256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_turns_the_picture_upright(orientation: int) -> None:
    upright = np.zeros((2, 3), dtype=np.uint8)
    upright[0, 0] = 255  # the bright corner is top left once upright
    # How the camera stores a picture that its EXIF tag then describes.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = reopened(Image.fromarray(np.ascontiguousarray(stored)), "png", exif=exif)
    result = to_rgb(picture)
    assert result.size == (3, 2)
    assert np.asarray(result)[..., 1].tolist() == upright.tolist()
    assert to_rgb(result).tobytes() == result.tobytes()


# The last one is too short for the count of entries that it claims.
@pytest.mark.filterwarnings("ignore:.*[Cc]orrupt EXIF data:UserWarning")  # Pillow says so itself
@pytest.mark.parametrize(
    "exif",
    [b"garbage", b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"Exif\0\0II*\0\x08\0"],
)
def test_damaged_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    picture = Image.new("RGB", (4, 3), (9, 8, 7))
    picture.info["exif"] = exif
    assert to_rgb(picture).tobytes() == picture.tobytes()


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    for kind, options in (("gif", {}), ("webp", {"lossless": True})):
        picture = reopened(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert to_rgb(picture).getpixel((1, 1)) == (250, 0, 0)


def test_pixel_values_are_scaled_and_normalised_by_channel() -> None:
    values = transform()(Image.new("RGB", (6, 6), (255, 102, 0)))
    assert values.shape == (3, 6, 6)
    assert values.dtype == torch.float32
    # By hand: (1 - 0.5) / 0.25 = 2, then (0.4 - 0.4) / 0.2 = 0, then (0 - 0.3) / 0.1 = -3.
    expected = torch.tensor([2.0, 0.0, -3.0]).view(3, 1, 1).expand(3, 6, 6)
    assert torch.allclose(values, expected, atol=1e-6)


def test_every_level_has_the_pixel_value_of_three_rounded_steps() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 1, 256, 3)
    values = ImageTransform(size=6, crop_size=6).normalize(torch.from_numpy(levels))
    scaled = (levels[0, 0].astype(np.float64) * (1 / 255)).astype(np.float32)  # as `transformers` does
    expected = (scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    assert np.array_equal(values[0, :, 0].numpy(), expected.T)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    size=st.one_of(st.integers(1, 20), st.tuples(st.integers(1, 20), st.integers(1, 20))),
    crop=st.integers(1, 20),
    resample=st.sampled_from(Image.Resampling),
)
def test_only_what_the_crop_keeps_is_resized_and_it_is_what_pillow_makes_of_the_whole(
    width: int, height: int, size: int | tuple[int, int], crop: int, resample: Image.Resampling
) -> None:
    seed = width * 61 + height
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    made = ImageTransform(size=size, crop_size=crop, resample=resample)
    resized = made.resized_size(width, height)
    assume(max(resized) <= 64 * crop)  # longer ones are rounded in another way
    whole = picture.resize(resized, resample)
    left, top = ((edge - crop) // 2 if edge >= crop else -((crop - edge + 1) // 2) for edge in resized)
    assert np.array_equal(made.cropped(picture), np.asarray(whole.crop((left, top, left + crop, top + crop))))


def test_rows_and_columns_keep_their_places() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    values = transform()(Image.fromarray(pixels))
    expected = (pixels.transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.allclose(values.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "resized"),
    [((12, 6), (12, 6)), ((24, 12), (12, 6)), ((10, 25), (6, 15)), ((7, 9), (6, 7)), ((1, 1), (6, 6))],
)
def test_the_shortest_edge_is_resized_and_the_longer_rounded_down(
    given: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert transform().resized_size(*given) == resized


def test_the_centre_is_cropped() -> None:
    pixels = np.zeros((6, 11, 3), dtype=np.uint8)
    pixels[:, 2:8] = 255  # (11 - 6) // 2 = 2
    values = ImageTransform(size=6, crop_size=6, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(pixels))
    assert values.min() == values.max() == 1


def test_a_picture_below_the_crop_size_gets_a_black_border() -> None:
    white = Image.new("RGB", (5, 5), (255, 255, 255))
    values = ImageTransform(size=5, crop_size=8, mean=(0, 0, 0), std=(1, 1, 1))(white)
    expected = torch.zeros(8, 8)
    expected[2:7, 2:7] = 1  # ceil((8 - 5) / 2) = 2 on the left and top
    assert values[0].equal(expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 50_000)])
def test_extreme_shapes_stay_small_in_memory(size: tuple[int, int]) -> None:
    values = transform()(Image.new("RGB", size, (255, 102, 0)))
    assert torch.allclose(values, torch.tensor([2.0, 0.0, -3.0]).view(3, 1, 1).expand(3, 6, 6), atol=1e-6)


def test_a_long_picture_is_cropped_at_its_centre() -> None:
    pixels = np.zeros((3, 3000, 3), dtype=np.uint8)
    pixels[:, 1490:1510] = 255
    values = ImageTransform(size=6, crop_size=6, mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(pixels))
    assert values.min() == 1


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        transform()(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [7, (5, 9)])
def test_saving_and_loading_changes_nothing(size: int | tuple[int, int], tmp_path: Path) -> None:
    first = ImageTransform(size=size, crop_size=6, mean=MEAN, std=STD, resample=Image.Resampling.LANCZOS)
    first.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 13, 3), dtype=np.uint8))
    for again in (ImageTransform.from_pretrained(tmp_path), pickle.loads(pickle.dumps(first))):
        assert again(picture).equal(first(picture))


def test_the_first_published_format_with_plain_numbers_is_read(tmp_path: Path) -> None:
    settings = {
        "size": 7,
        "crop_size": 6,
        "image_mean": MEAN,
        "image_std": STD,
        "resample": 3,
        "do_resize": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 13, 3), dtype=np.uint8))
    assert ImageTransform.from_pretrained(tmp_path)(picture).equal(transform(7, 6)(picture))


def test_the_image_part_of_a_combined_processor_config_is_read(tmp_path: Path) -> None:
    transform(7, 6).save_pretrained(tmp_path)
    alone = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
    alone.unlink()
    again = ImageTransform.from_pretrained(tmp_path)
    assert (again.size, again.crop_size, again.mean, again.std) == (7, 6, MEAN, STD)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"size": {"longest_edge": 9}}, "longest_edge"),
        ({"crop_size": {"height": 4, "width": 5}}, "equal height and width"),
        ({"image_std": [0.0, 1.0, 1.0]}, "above 0"),
        ({"crop_size": -1}, "at least 1 pixel"),
    ],
)
def test_settings_that_are_not_clips_are_named(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        ImageTransform.from_pretrained(tmp_path)


def test_a_missing_preprocessor_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ImageTransform.from_pretrained(tmp_path)

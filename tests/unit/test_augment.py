"""Augmentation: what moves, what is recoloured, what stays."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altclip_train.processing import Augmentation

STRONG: dict[str, Any] = {
    "rotate_degrees": 15.0,
    "shift": 0.1,
    "scale": (0.8, 1.25),
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "grey_probability": 0.2,
}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(generator(5).integers(60, 200, (height, width, 3), dtype=np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def dot(width: int = 60, height: int = 40) -> Image.Image:
    """A white 4 x 4 square in the middle of black."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] = 255
    return Image.fromarray(pixels)


def centre_of_mass(image: Image.Image) -> tuple[float, float]:
    weights = array(image)[..., 0]
    rows, columns = np.indices(weights.shape) + 0.5
    return float((columns * weights).sum() / weights.sum()), float((rows * weights).sum() / weights.sum())


def test_without_any_strength_nothing_changes() -> None:
    picture = noise()
    assert Augmentation()(picture, generator()).tobytes() == picture.tobytes()


def test_equal_generators_give_equal_pictures_and_others_differ() -> None:
    augment, picture = Augmentation(**STRONG), noise()
    first = augment(picture, generator(1)).tobytes()
    assert augment(picture, generator(1)).tobytes() == first
    assert augment(picture, generator(2)).tobytes() != first


def test_the_picture_given_is_not_changed() -> None:
    picture = noise()
    before = picture.tobytes()
    Augmentation(**STRONG)(picture, generator())
    assert picture.tobytes() == before


def test_every_setting_draws_the_same_count_of_numbers() -> None:
    all_settings: list[dict[str, Any]] = [{}, {"grey_probability": 0.5}, STRONG]
    states = []
    for settings in all_settings:
        source = generator(3)
        Augmentation(**settings)(noise(), source)
        states.append(source.random())
    assert states[0] == states[1] == states[2]


def test_rotation_equals_pillows_own() -> None:
    picture = noise(40, 40)
    angle = generator(4).uniform(-1.0, 1.0, 6)[0] * 30
    moved = Augmentation(rotate_degrees=30)(picture, generator(4))
    expected = picture.rotate(-angle, Image.Resampling.BILINEAR)
    inner = (slice(10, 30), slice(10, 30))  # outside, the fill colours differ
    assert np.abs(array(moved)[inner] - array(expected)[inner]).max() <= 1


def test_shift_moves_the_content_by_a_share_of_the_picture() -> None:
    across, down = generator(6).uniform(-1.0, 1.0, 6)[1:3]
    column, row = centre_of_mass(Augmentation(shift=0.25)(dot(), generator(6)))
    assert column == pytest.approx(30 + across * 0.25 * 60, abs=0.1)
    assert row == pytest.approx(20 + down * 0.25 * 40, abs=0.1)


@pytest.mark.parametrize(("factor", "bright"), [(2.0, 64), (1.0, 16), (0.5, 4)])
def test_scale_changes_the_area_around_the_centre(factor: float, bright: int) -> None:
    picture = Augmentation(scale=(factor, factor))(dot(), generator())
    assert array(picture)[..., 0].sum() / 255 == pytest.approx(bright, rel=0.3)
    assert centre_of_mass(picture) == pytest.approx((30, 20), abs=0.1)


def test_scales_are_drawn_from_the_whole_range() -> None:
    augment = Augmentation(scale=(0.5, 2.0))
    areas = [array(augment(dot(), generator(seed)))[..., 0].sum() / 255 for seed in range(60)]
    assert min(areas) < 8
    assert max(areas) > 40


def test_left_stays_left() -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :16] = (200, 0, 0)
    pixels[:, 16:] = (0, 0, 200)
    augment = Augmentation(rotate_degrees=20, shift=0.1, scale=(0.8, 1.2))
    for seed in range(50):
        moved = array(augment(Image.fromarray(pixels), generator(seed)))
        assert moved[:, :16, 0].mean() > moved[:, 16:, 0].mean() + 50
        assert moved[:, 16:, 2].mean() > moved[:, :16, 2].mean() + 50


def test_uncovered_parts_take_the_colour_of_the_corners() -> None:
    picture = Image.new("RGB", (20, 16), (40, 90, 160))
    picture.putpixel((0, 0), (255, 255, 255))  # one odd corner does not count
    moved = array(Augmentation(scale=(0.5, 0.5))(picture, generator()))
    assert moved[2, 2].tolist() == moved[-2, -2].tolist() == [40, 90, 160]


def test_brightness_multiplies_every_channel() -> None:
    draw = generator(7).uniform(-1.0, 1.0, 6)[3]
    result = Augmentation(brightness=0.4)(Image.new("RGB", (5, 4), (100, 50, 20)), generator(7))
    assert array(result)[0, 0] == pytest.approx(np.array([100, 50, 20]) * (1 + 0.4 * draw), abs=0.6)


def test_contrast_spreads_around_the_mean() -> None:
    draw = generator(8).uniform(-1.0, 1.0, 6)[4]
    before = array(noise())
    after = array(Augmentation(contrast=0.4)(noise(), generator(8)))
    assert after.mean() == pytest.approx(before.mean(), abs=1.5)
    assert after.std() / before.std() == pytest.approx(1 + 0.4 * draw, abs=0.01)


def test_saturation_keeps_the_grey_of_each_pixel() -> None:
    picture = noise()
    after = Augmentation(saturation=0.3)(picture, generator(9))
    difference = array(after.convert("L")) - array(picture.convert("L"))
    assert np.abs(difference).max() <= 2
    assert after.tobytes() != picture.tobytes()


def test_grey_probability_is_the_share_of_grey_pictures() -> None:
    augment, picture = Augmentation(grey_probability=0.3), noise(6, 5)
    results = [array(augment(picture, generator(seed))) for seed in range(300)]
    grey = [np.ptp(result, axis=2).max() == 0 for result in results]
    assert 60 < sum(grey) < 120
    expected = array(picture.convert("L"))
    assert np.abs(results[grey.index(True)][..., 0] - expected).max() <= 1


def test_other_modes_become_rgb() -> None:
    assert Augmentation(**STRONG)(Image.new("RGBA", (6, 5)), generator()).mode == "RGB"


def test_a_small_picture_takes_a_fraction_of_a_millisecond() -> None:
    augment, picture, source = Augmentation(**STRONG), noise(80, 80), generator()
    durations = []
    for _ in range(40):
        start = time.perf_counter()
        augment(picture, source)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1e-3  # the fastest of many: a busy machine slows down the others


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (1.2, 0.8)}, "scale"),
        ({"shift": 1.5}, r"shift=1\.5"),
        ({"contrast": -0.1}, "contrast"),
        ({"grey_probability": 2}, "grey_probability"),
        ({"rotate_degrees": 400}, "rotate_degrees"),
    ],
)
def test_values_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)

"""One sample's bytes: what is accepted, and under which reason the rest is refused."""

import io
import json
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from altclip_train.data.samples import (
    BadSample,
    SkipCounter,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_text_field,
    normalize_language,
)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode="RGB"):
    """Random pixels, 7 wide and 5 high; half transparent where the mode has alpha."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (5, 7), dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(128)
    return image


def png_header(width, height):
    """Header of a PNG of any size, with data that is too short for it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", "en"),
        ("cn", "zh"),
        ("jp", "ja"),
        ("ZH_cn", "zh-CN"),
        ("zh-hant-TW", "zh-Hant-TW"),
        ("yue", "yue"),
        ("caption", None),
        ("url", None),
        ("e", None),
        ("", None),
        ("en ", None),
    ],
)
def test_languages_are_spelled_as_in_bcp_47(code, expected):
    assert normalize_language(code) == expected


@pytest.mark.parametrize(
    ("fields", "default", "expected"),
    [
        ({"json": {"en": "a cat", "cn": "猫"}}, None, {"en": ["a cat"], "zh": ["猫"]}),
        ({"json": {"en": ["a", " b "], "width": 3, "id": 7, "license": "x"}}, None, {"en": ["a", "b"]}),
        ({"en.txt": "a cat", "zh.txt": "猫"}, None, {"en": ["a cat"], "zh": ["猫"]}),
        ({"txt": "one\ntwo\r\n\n"}, "en", {"en": ["one", "two"]}),
        ({"txt": "a cat", "zh.txt": "猫"}, "en", {"en": ["a cat"], "zh": ["猫"]}),
        ({"txt": "a cat", "en.txt": "a dog"}, "en", {"en": ["a dog"]}),
        ({"txt": "\ufeffa cat"}, "en", {"en": ["a cat"]}),
        # A crawler's metadata beside its caption: `id` and `key` are no captions.
        (
            {"txt": "猫", "json": {"id": "7", "key": "0001", "url": "http://x", "caption": "cat"}},
            "zh",
            {"zh": ["猫"]},
        ),
    ],
)
def test_captions_of_every_layout_are_read(fields, default, expected):
    members = {name: (json.dumps(v) if name == "json" else v).encode() for name, v in fields.items()}
    assert decode_captions(members, default_language=default) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "caption_missing"),
        ({"jpg": b""}, "caption_missing"),
        ({"json": b"{}"}, "caption_missing"),
        ({"json": b'{"caption": "a", "url": "b"}'}, "caption_missing"),
        ({"txt": b"a cat"}, "caption_language"),
        ({"en.txt": b""}, "caption_empty"),
        ({"en.txt": b" \n\t\n"}, "caption_empty"),
        ({"json": b'{"en": ""}'}, "caption_empty"),
        ({"json": b'{"en": []}'}, "caption_empty"),
        ({"json": b'{"en": ["a", " "]}'}, "caption_empty"),
        ({"json": b'{"en": ["a", 3]}'}, "caption_type"),
        ({"json": b'{"en": "a\\u0000b"}'}, "caption_encoding"),
        ({"json": b'{"en": "a\\ud800b"}'}, "caption_encoding"),
        ({"json": b'{"en": "\xff"}'}, "caption_encoding"),
        ({"json": b'{"en": "\xed\xa0\x80"}'}, "caption_encoding"),
        ({"en.txt": b"\xff\xfe"}, "caption_encoding"),
        ({"json": b'{"cn": "a", "zh": "b"}'}, "caption_repeated"),
        ({"json": b'{"en": "a"'}, "caption_json"),
        ({"json": b'["a"]'}, "caption_json"),
        ({"json": b"[" * 100_000}, "caption_json"),
        ({"json": b'{"en": ' + b"9" * 5000 + b"}"}, "caption_json"),
        ({"en.txt": b"a" * 30_000}, "caption_long"),
        ({"en.txt": b"a\n" * 600_000}, "caption_long"),
    ],
)
def test_bad_captions_are_refused_by_reason(fields, reason):
    with pytest.raises(BadSample) as error:
        decode_captions(fields, default_language=None)
    assert error.value.reason == reason


@pytest.mark.parametrize("name", ["pkl", "pickle", "pyd", "pth", "pt", "npy", "cls", "svg", "v1.png", "sh", "xyz.json"])
def test_no_other_member_is_wanted(name):
    assert not is_image_text_field(name)


@pytest.mark.parametrize("name", ["json", "txt", "en.txt", "zh-cn.txt"])
def test_caption_members_are_wanted(name):
    assert is_caption_field(name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_png_keeps_its_mode_and_pixels(mode):
    image = picture(mode)
    decoded = decode_image({"txt": b"", "jpg": encoded(image, "PNG")})  # the content decides, not the name
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_lossless_webp_keeps_its_mode_and_pixels(mode):
    image = picture(mode)
    decoded = decode_image({"webp": encoded(image, "WEBP", lossless=True)})
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_keeps_its_mode_and_nearly_its_colour(mode):
    image = Image.new(mode, (9, 8), {"RGB": (200, 40, 90), "L": 77, "CMYK": (10, 200, 30, 60)}[mode])
    decoded = decode_image({"jpeg": encoded(image, "JPEG")})
    assert (decoded.mode, decoded.size) == (mode, (9, 8))
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(image)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True, duration=100)
    assert decode_image({"webp": data}).convert("RGB").getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "image_missing"),
        (b"", "image_type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_type"),
        (b"GIF89a" + b"\0" * 40, "image_type"),
        (pickle.dumps({"a": 1}), "image_type"),
        (encoded(picture(), "JPEG")[:-20], "image_damaged"),
        (encoded(picture(), "JPEG")[:30], "image_damaged"),
        (encoded(picture(), "PNG")[:-40], "image_damaged"),
        (encoded(picture(), "WEBP")[:-20], "image_damaged"),
        (encoded(picture(), "PNG")[:8], "image_damaged"),
        (png_header(6, 4), "image_damaged"),
        (png_header(10_000, 5_001), "image_pixels"),
        (png_header(15_000, 15_000), "image_pixels"),
        (png_header(100_000, 100_000), "image_pixels"),
    ],
)
def test_bad_pictures_are_refused_by_reason(data, reason, recwarn):
    with pytest.raises(BadSample) as error:
        decode_image({"txt": b"a"} if data is None else {"jpg": data})
    assert error.value.reason == reason
    assert not recwarn.list


def test_pixel_limit_is_exact():
    data = {"png": encoded(picture(), "PNG")}
    assert decode_image(data, max_pixels=35).size == (7, 5)
    with pytest.raises(BadSample, match="7x5 pixels, limit 34"):
        decode_image(data, max_pixels=34)


def test_bad_samples_survive_pickling_between_processes():
    error = pickle.loads(pickle.dumps(BadSample("image_type", "it begins with b'x'")))
    assert (error.reason, error.detail) == ("image_type", "it begins with b'x'")


def test_skipping_many_bad_samples_is_quick():
    data = {"jpg": encoded(picture(), "JPEG")[:-20]}
    start = time.perf_counter()
    for _ in range(200):
        with pytest.raises(BadSample):
            decode_image(data)
    assert time.perf_counter() - start < 2


def feed(counter, good, bad):
    for _ in range(good):
        counter.good()
    for _ in range(bad):
        counter.bad(BadSample("image_type", "odd"), "'k' in 0.tar")


def test_too_many_bad_samples_stop_the_run_with_reasons_and_counts():
    counter = SkipCounter(0.1)
    feed(counter, 30, 3)
    counter.bad(BadSample("caption_empty"), "'e' in 1.tar")
    with pytest.raises(ValueError, match=r"of \d+ samples cannot be used, .* max_bad_fraction=0\.1 ") as error:
        feed(counter, 0, 10)
    assert "image_type: " in str(error.value)
    assert "such as 'k' in 0.tar: odd" in str(error.value)
    assert "caption_empty: 1, such as 'e' in 1.tar" in str(error.value)


def test_bad_samples_within_the_limit_are_only_counted():
    counter = SkipCounter(0.1)
    for _ in range(50):
        feed(counter, 9, 1)
    assert (counter.seen, counter.skipped) == (500, 50)


def test_one_bad_sample_stops_a_run_that_allows_none_once_twenty_are_seen():
    counter = SkipCounter(0)
    feed(counter, 10, 1)
    feed(counter, 8, 0)
    with pytest.raises(ValueError, match="2 of 20"):
        feed(counter, 0, 1)


def test_only_bad_samples_stop_a_run_at_the_twentieth():
    counter = SkipCounter(0.5)
    feed(counter, 0, 19)
    with pytest.raises(ValueError, match="20 of 20"):
        feed(counter, 0, 1)
    assert SkipCounter(1).max_fraction == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="from 0 to 1"):
        SkipCounter(fraction)


def test_captions_are_split_at_line_feeds_alone():
    captions = decode_captions({"en.txt": "a cat\u2028on a\x85mat\r\na dog\n".encode()}, default_language=None)
    assert captions == {"en": ["a cat\u2028on a\x85mat", "a dog"]}

"""One sample's bytes: what is accepted, and under which reason the rest is refused."""

import io
import json
import pickle
import struct
import time
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from altclip_train.data.samples import (
    BadSample,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_text_field,
    narrow,
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
        ({"en.txt": b"\x07\x1f"}, "caption_empty"),
        ({"en.txt": "\u3000\u00a0".encode()}, "caption_empty"),
        ({"en.txt": b"... ?!"}, "caption_punctuation"),
        ({"zh.txt": "……。".encode()}, "caption_punctuation"),
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


def smooth(width, height):
    """A picture without fine detail."""
    noise = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("needed", "expected"), [(224, (320, 240)), (240, (320, 240)), (241, (640, 480)), (480, (640, 480)), (60, (80, 60))]
)
def test_draft_decodes_a_jpeg_smaller_but_never_below_what_is_needed(needed, expected):
    image = smooth(640, 480)
    data = {"jpg": encoded(image, "JPEG", quality=95)}
    drafted = decode_image(data, draft=lambda width, height: (needed * width // height, needed))
    assert drafted.size == expected
    # The same content: as close to a plain resize as JPEG itself is.
    plain = decode_image(data).resize(expected, Image.Resampling.BOX)
    assert np.abs(np.asarray(drafted).astype(int) - np.asarray(plain)).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_draft_leaves_other_formats_alone(kind):
    data = {"jpg": encoded(smooth(64, 48), kind, lossless=True)}
    assert np.array_equal(np.asarray(decode_image(data, draft=lambda *_: (8, 6))), np.asarray(decode_image(data)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_draft_keeps_the_mode(mode):
    data = {"jpg": encoded(smooth(64, 48).convert(mode), "JPEG")}
    drafted = decode_image(data, draft=lambda *_: (32, 24))
    assert (drafted.mode, drafted.size) == (mode, (32, 24))


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("\u1112\u1161\u11ab", "\ud55c"),  # Hangul jamo
        ("a\tcat\x0b on\x85a mat", "a cat  on a mat"),
        ("a\x07 c\x9fat\x7f", "a cat"),
        ("a\ufeffb", "ab"),
        ("👩‍👧 + ی‌ک", "👩‍👧 + ی‌ک"),  # joiners are part of emoji and of Persian
        ("ＡＢ１２，　x", "ＡＢ１２，　x"),
        ("①½ﬁ", "①½ﬁ"),  # NFC, not NFKC
        ("🐱", "🐱"),
        ("5", "5"),
    ],
)
def test_captions_are_in_nfc_without_control_characters(text, expected):
    members = {"json": json.dumps({"en": text}).encode()}
    assert decode_captions(members, default_language=None) == {"en": [expected]}


def test_each_control_character_is_a_space_or_gone_and_nothing_else_is():
    controls = [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) == "Cc" or c == "\ufeff"]
    read = decode_captions({"json": json.dumps({"en": [f"a{c}b" for c in controls]}).encode()}, default_language=None)
    assert read["en"] == ["a b" if c.isspace() else "ab" for c in controls]
    kept = [
        f"a{c}b" for c in ("\u3000", "\u200b", "\u2028", "\xa0", "\xad", "\U0001f600")
    ]  # not printable, most of them
    assert decode_captions({"json": json.dumps({"en": kept}).encode()}, default_language=None)["en"] == kept


def test_full_width_characters_have_ascii_counterparts():
    full = "".join(map(chr, range(0xFF01, 0xFF5F)))
    assert narrow(full) == unicodedata.normalize("NFKC", full) == "".join(map(chr, range(0x21, 0x7F)))
    assert narrow("ＡＩ　２０２６年：ﾊﾝ") == "AI 2026年:ﾊﾝ"


def test_captions_are_split_at_line_feeds_alone():
    captions = decode_captions({"en.txt": "a cat\u2028on a\x85mat\r\na dog\n".encode()}, default_language=None)
    assert captions == {"en": ["a cat\u2028on a mat", "a dog"]}

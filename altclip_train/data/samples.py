"""Bytes of one sample to captions and a picture, with every damage turned into a named reason.

Only json, txt, jpg, jpeg, png and webp members are ever looked at, and nothing is unpickled or executed.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache

from PIL import Image
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 50_000_000
MAX_CAPTION_BYTES = 1 << 20  # of all captions of a sample
MAX_CAPTION_CHARACTERS = 20_000

# Two-letter codes with region, script or variant; three-letter ones for languages that have no shorter code.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")
_OTHER_CODES = {"cn": "zh", "jp": "ja"}
_NOT_LANGUAGES = {"key", "url"}  # three-letter metadata of crawled samples

# What str.isspace counts as space among the control characters becomes one; the others go, a byte order mark too.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ufeff]")
_PLAIN_CONTROLS = {c: " " if chr(c).isspace() else None for c in (*range(0x20), *range(0x7F, 0xA0), 0xFEFF)}
_FULL_WIDTH = {0x3000: " ", **{c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}}


class BadSample(Exception):  # noqa: N818 the fault is the data's
    """A sample that cannot be used: ``reason`` is a short code, ``detail`` says more for a person."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@lru_cache(maxsize=4096)
def normalize_language(code: str) -> str | None:
    """BCP-47 spelling of a code (``zh``, ``zh-Hant``, ``pt-BR``) or None; cn is zh, jp is ja."""
    parts = code.lower().replace("_", "-")
    if not _LANGUAGE.fullmatch(parts) or parts in _NOT_LANGUAGES:
        return None
    language, *subtags = parts.split("-")
    spelled = [tag.title() if len(tag) == 4 else tag.upper() if len(tag) == 2 else tag for tag in subtags]
    return "-".join([_OTHER_CODES.get(language, language), *spelled])


def language_spellings(code: str) -> list[str]:
    """A code and what others write in its place: zh, cn."""
    return [code, *(other for other, ours in _OTHER_CODES.items() if ours == code)]


def is_caption_field(field: str) -> bool:
    return field in ("json", "txt") or (field.endswith(".txt") and normalize_language(field[:-4]) is not None)


def is_image_field(field: str) -> bool:
    return field in IMAGE_FIELDS


def is_image_text_field(field: str) -> bool:
    return is_image_field(field) or is_caption_field(field)


def decode_captions(
    fields: Mapping[str, bytes], *, default_language: str | None, bare_punctuation: bool = False
) -> dict[str, list[str]]:
    """Captions by language, from ``<lang>.txt`` and ``txt`` (one per line), else from ``json``.

    A ``txt`` is in ``default_language``. Beside texts a json is a crawler's metadata and not read; of one
    that is read, only keys that are language codes and hold text count. Captions come in NFC and without control
    characters; ``bare_punctuation`` lets those pass that say nothing, which published benchmarks have. Raises
    BadSample.
    """
    captions: dict[str, list[str]] = {}
    for field, data in fields.items():
        language = normalize_language(field[:-4]) if field.endswith(".txt") else None
        if language is not None:
            _add(captions, language, _lines(field, data), field, bare_punctuation)
    if "txt" in fields and default_language is not None and default_language not in captions:
        _add(captions, default_language, _lines("txt", fields["txt"]), "txt", bare_punctuation)
    if not captions and "json" in fields:
        for key, value in _json_object(fields["json"]).items():
            language = normalize_language(key)
            if language is not None and isinstance(value, str | list):
                texts = [value] if isinstance(value, str) else value
                _add(captions, language, texts, f"json key {key!r}", bare_punctuation)
    if not captions and "txt" in fields:
        raise BadSample("caption_language", "txt is in no known language: give its source `languages` with just one")
    if not captions:
        raise BadSample("caption_missing", f"members: {', '.join(fields) or 'none'}")
    return captions


def _add(captions: dict[str, list[str]], language: str, texts: list[str], origin: str, bare_punctuation: bool) -> None:
    if language in captions:
        raise BadSample("caption_repeated", f"{origin} gives {language!r} a second time")
    captions[language] = [_checked(text, origin, bare_punctuation) for text in texts]
    if not texts:
        raise BadSample("caption_empty", origin)


def _checked(text: object, origin: str, bare_punctuation: bool) -> str:
    """The caption in NFC, without control characters. Raises BadSample."""
    if not isinstance(text, str):
        raise BadSample("caption_type", f"{origin} holds {type(text).__name__}, expected text")
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise BadSample("caption_long", f"{origin} has {len(text)} characters, limit {MAX_CAPTION_CHARACTERS}")
    if not text.isprintable() and _CONTROLS.search(text):  # the first is fast and true of every control character
        if "\0" in text:
            raise BadSample("caption_encoding", f"{origin} holds a NUL character")
        text = text.translate(_PLAIN_CONTROLS)
    if not text.isascii():
        try:
            text.encode()  # JSON can smuggle in lone surrogates, at which tokenizers break
        except UnicodeEncodeError as error:
            raise BadSample("caption_encoding", f"{origin}: {error}") from None
        text = unicodedata.normalize("NFC", text)
    text = text.strip()
    if not text:
        raise BadSample("caption_empty", origin)
    if not (bare_punctuation or text[0].isalnum() or any(map(_says_something, text))):
        raise BadSample("caption_punctuation", f"{origin} is {text[:20]!r}: no letter, digit or symbol")
    return text


def _says_something(character: str) -> bool:
    """Letters, digits, and symbols such as emoji; neither punctuation nor spaces."""
    return character.isalnum() or unicodedata.category(character)[0] == "S"


def narrow(text: str) -> str:
    """Full-width letters, digits, punctuation and spaces as their ASCII counterparts."""
    return text if text.isascii() else text.translate(_FULL_WIDTH).strip()


def _lines(field: str, data: bytes) -> list[str]:
    # Not splitlines(): it also breaks at separators that may stand inside a caption, such as U+2028 and U+0085.
    return [line for line in _text(field, data).replace("\r\n", "\n").split("\n") if line.strip()]


def _text(field: str, data: bytes) -> str:
    if len(data) > MAX_CAPTION_BYTES:
        raise BadSample("caption_long", f"{field} has {len(data)} bytes, limit {MAX_CAPTION_BYTES}")
    try:
        return data.decode().removeprefix("\ufeff")  # the codec utf-8-sig is written in Python
    except UnicodeDecodeError as error:
        raise BadSample("caption_encoding", f"{field}: {error}") from None


def _json_object(data: bytes) -> dict[str, object]:
    text = _text("json", data)  # json.loads(bytes) would let invalid UTF-8 pass
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample("caption_json", str(error)) from None
    if not isinstance(value, dict):
        raise BadSample("caption_json", f"a {type(value).__name__}, expected an object of language: text")
    return value


def decode_image(
    fields: Mapping[str, bytes],
    max_pixels: int = MAX_PIXELS,
    draft: Callable[[int, int], tuple[int, int]] | None = None,
) -> Image.Image:
    """The picture of a sample, in its own mode, fully decoded; what it is decides its content, not its name.

    With ``draft``, which gives the size that a picture of (width, height) is needed in, a JPEG is decoded at a
    half, quarter or eighth of its size where that is no smaller: faster, with slightly other pixels.
    Raises BadSample; for more than ``max_pixels`` before anything is decoded.
    """
    data = next((fields[name] for name in IMAGE_FIELDS if name in fields), None)
    if data is None:
        raise BadSample("image_missing", f"members: {', '.join(fields) or 'none'}; keys must not contain dots")
    # The plugins are called by name since Image.open would warn of large pictures before their size is known.
    if data.startswith(b"\xff\xd8\xff"):
        open_image = jpeg_factory
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        open_image = PngImageFile
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        open_image = WebPImageFile
    else:
        raise BadSample("image_type", f"neither JPEG, PNG nor WebP: it begins with {data[:16]!r}")
    try:
        image = open_image(io.BytesIO(data))
        width, height = image.size
        if width * height <= max_pixels:
            if draft is not None:
                image.draft(None, draft(width, height))  # other formats than JPEG ignore it
            image.load()
    except Exception as error:  # decoders raise errors of many types on damaged data
        raise BadSample("image_damaged", f"{type(error).__name__}: {error}") from error
    if width * height > max_pixels:
        raise BadSample("image_pixels", f"{width}x{height} pixels, limit {max_pixels}")
    return image

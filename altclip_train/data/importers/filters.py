"""What an import leaves out on purpose: texts by length and script, pairs by ratio, evaluation pictures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from altclip_train.processing.images import to_rgb

LETTER = re.compile(r"[^\W\d_]")
HAN = re.compile(r"[\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
KANA = re.compile(r"[\u3041-\u309f\u30a1-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
HANGUL = re.compile(r"[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
LATIN = re.compile(
    r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]"
)
# Languages that are not written in Latin letters, and the letters they are written in.
SCRIPTS = {
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "mn", "tg"), re.compile(r"[\u0400-\u052f]")),
    **dict.fromkeys(
        ("ar", "fa", "ur", "ps", "ug"), re.compile(r"[\u0620-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc]")
    ),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), re.compile(r"[\u0900-\u097f]")),
    "bn": re.compile(r"[\u0980-\u09ff]"),
    "ta": re.compile(r"[\u0b80-\u0bff]"),
    "te": re.compile(r"[\u0c00-\u0c7f]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "lo": re.compile(r"[\u0e80-\u0eff]"),
    "my": re.compile(r"[\u1000-\u109f]"),
    "km": re.compile(r"[\u1780-\u17ff]"),
    "am": re.compile(r"[\u1200-\u139f]"),
    "ka": re.compile(r"[\u10a0-\u10ff]"),
    "hy": re.compile(r"[\u0531-\u058f]"),
    "el": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"),
    **dict.fromkeys(("he", "yi"), re.compile(r"[\u0590-\u05ff]")),
}


@dataclass(frozen=True)
class Filters:
    """Limits on what is imported; None and False switch one off.

    ``max_ratio`` bounds the longest over the shortest text of a pair in UTF-8 bytes: in bytes, translations
    between scripts are of more equal length than in characters.
    """

    min_chars: int = 1
    max_chars: int | None = None
    max_ratio: float | None = None
    check_script: bool = False
    drop_duplicates: bool = False

    def wrong_with(self, language: str, text: str) -> str | None:
        """The reason to leave out one text, or None."""
        if len(text) < self.min_chars:
            return "text_short"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "text_long"
        if self.check_script and not in_script(language, text):
            return f"script_{language}"
        return None

    def ratio_exceeded(self, texts: Sequence[str]) -> bool:
        if self.max_ratio is None or len(texts) < 2:
            return False
        sizes = [len(text.encode()) for text in texts]
        return max(sizes) > self.max_ratio * min(sizes)


def in_script(language: str, text: str) -> bool:
    """Whether ``text`` is written as ``language`` is.

    Chinese: more Han than kana and hangul; Japanese: some kana; Korean: some hangul, so that foreign names may
    stand in them. All others: at least half of the letters are of their script, which is Latin unless known.
    """
    language = language.partition("-")[0]
    if language == "zh":
        return len(HAN.findall(text)) > len(KANA.findall(text)) + len(HANGUL.findall(text))
    if language in ("ja", "ko"):
        return (KANA if language == "ja" else HANGUL).search(text) is not None
    letters = len(LETTER.findall(text))
    return letters > 0 and 2 * len(SCRIPTS.get(language, LATIN).findall(text)) >= letters


def picture_digest(image: Image.Image) -> bytes:
    """16 bytes that are equal for equal pixels, however they are stored.

    Of the upright RGB picture as training sees it, since evaluation sets are often stored anew without loss
    (CLIP_benchmark writes WebP). A picture that was resized or compressed again has another digest.
    """
    rgb = to_rgb(image)
    return hashlib.blake2b(rgb.tobytes(), digest_size=16, person=f"{rgb.width}x{rgb.height}".encode()[:16]).digest()


def content_digest(captions: Mapping[str, Sequence[str]], picture: bytes | None) -> int:
    """64 bits, never 0, equal for equal texts and equal picture files."""
    digest = hashlib.blake2b(digest_size=8)
    for language in sorted(captions):
        digest.update("\0".join(["", language, *captions[language]]).encode())
    digest.update(b"\0\0" + (picture or b""))
    return int.from_bytes(digest.digest(), "little") or 1

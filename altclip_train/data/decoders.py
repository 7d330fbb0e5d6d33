"""The members of a sample to the record that a stage trains on, and records to a batch: one decoder per stage.

A decoder knows nothing of shards, order or ranks. What it draws comes from the ``draw`` that it is given.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from altclip_train.data.samples import (
    BadSample,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_text_field,
    narrow,
)
from altclip_train.data.sources import Source, language_code
from altclip_train.processing.images import to_rgb
from altclip_train.types import CachedVectors, ImageTextBatch, PackedTokens, SkippedSample, TextPairBatch

ENGLISH = "en"
Draw: TypeAlias = Callable[[str, int], int]  # (purpose, choices): a number below ``choices``
Record = TypeVar("Record")


class Cached(NamedTuple):
    """What a cache has for one entry of a sample: a text of the list, or the picture."""

    vector: np.ndarray | None  # (W,); None: not yet
    shard: int
    row: int  # where it belongs; -1: nowhere


Lookup: TypeAlias = Callable[[int], Cached]  # number of an entry of the sample


class Packer(Protocol):
    """The part of a tokenizer that decoders use."""

    def pack(self, texts: Sequence[str], max_length: int) -> PackedTokens: ...


class PictureTransform(Protocol):
    """The part of :class:`~altclip_train.processing.ImageTransform` that decoders use."""

    def cropped(self, image: Image.Image) -> np.ndarray: ...


class Decoder(Protocol[Record]):
    """What a dataset needs to know of its stage."""

    def wanted(self, field: str) -> bool:
        """Whether a member of this field name is read at all."""
        ...

    def decode(
        self, members: Mapping[str, bytes], key: str, source: Source, draw: Draw, cache: Lookup | None = None
    ) -> Record:
        """One sample as it enters a batch; pure in its arguments. Raises BadSample."""
        ...

    def batch(self, records: Sequence[Record], skipped: Sequence[SkippedSample]) -> Any:
        """The batch of these records, in this order."""
        ...


class TextPair(NamedTuple):
    key: str
    language: str
    text: str
    english: str
    target: Cached | None = None  # the teacher's vector of the English


class TextPairDecoder:
    """Stage one: a visit of an entry gives its English and one other language, drawn.

    ``languages`` other than English to draw from (default: all that an entry has).
    """

    def __init__(
        self,
        *,
        student_tokenizer: Packer,
        teacher_tokenizer: Packer,
        max_length: int,
        languages: Sequence[str] | None = None,
        normalize_full_width: bool = False,
    ) -> None:
        self.student_tokenizer = student_tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.max_length = max_length
        self.languages = None if languages is None else {language_code(code) for code in languages} - {ENGLISH}
        self.normalize_full_width = normalize_full_width

    def wanted(self, field: str) -> bool:
        return is_caption_field(field)

    def decode(
        self, members: Mapping[str, bytes], key: str, source: Source, draw: Draw, cache: Lookup | None = None
    ) -> TextPair:
        captions = _captions(members, source, normalize_full_width=self.normalize_full_width)
        if ENGLISH not in captions:
            raise BadSample("english_missing", f"languages: {', '.join(captions) or 'none'}")
        others = sorted(captions.keys() - {ENGLISH} if self.languages is None else captions.keys() & self.languages)
        if not others:
            raise BadSample("language_missing", f"languages: {', '.join(captions)}")
        entries = len(captions[ENGLISH])
        if any(len(captions[language]) != entries for language in others):
            lengths = {language: len(captions[language]) for language in (ENGLISH, *others)}
            raise BadSample("captions_unaligned", f"numbers of texts: {lengths}")
        language = others[draw("language", len(others))]
        place = draw("caption", entries)
        target = None if cache is None else cache(place)
        return TextPair(key, language, captions[language][place], captions[ENGLISH][place], target)

    def batch(self, records: Sequence[TextPair], skipped: Sequence[SkippedSample]) -> TextPairBatch:
        english = [pair.english for pair in records]
        cached, missing = _join([pair.target for pair in records])
        taught = [english[place] for place in missing]
        return TextPairBatch(
            student=self.student_tokenizer.pack([*(pair.text for pair in records), *english], self.max_length),
            teacher=self.teacher_tokenizer.pack(taught, self.max_length) if taught else None,
            languages=[pair.language for pair in records],
            keys=[pair.key for pair in records],
            skipped=skipped,
            cached=cached,
        )


class ImageText(NamedTuple):
    key: str
    language: str
    caption: str
    pixels: np.ndarray | None  # (R, R, 3) uint8; None: its features are cached
    features: Cached | None = None


class ImageTextDecoder:
    """Stage two: a visit of a sample gives its picture and one caption, drawn.

    Of the ``languages`` (default: all) that a sample has, one is drawn by ``language_weights``, 1 if not named.
    ``draft`` is that of :func:`~altclip_train.data.samples.decode_image`.
    """

    def __init__(
        self,
        *,
        tokenizer: Packer,
        image_transform: PictureTransform,
        max_length: int,
        augmentation: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None,
        draft: Callable[[int, int], tuple[int, int]] | None = None,
        languages: Sequence[str] | None = None,
        language_weights: Mapping[str, float] | None = None,
        normalize_full_width: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.augmentation, self.draft = augmentation, draft
        self.max_length = max_length
        self.languages = None if languages is None else {language_code(code) for code in languages}
        self.language_weights = _language_weights(language_weights or {}, self.languages)
        self.normalize_full_width = normalize_full_width

    def wanted(self, field: str) -> bool:
        return is_image_text_field(field)

    def decode(
        self, members: Mapping[str, bytes], key: str, source: Source, draw: Draw, cache: Lookup | None = None
    ) -> ImageText:
        captions = _captions(members, source, normalize_full_width=self.normalize_full_width)
        language = self._draw_language(captions, draw)
        texts = captions[language]
        features = None if cache is None else cache(0)
        pixels = self._pixels(members, draw) if features is None or features.vector is None else None
        caption = texts[draw("caption", len(texts))]
        return ImageText(key, language, caption, pixels, features)

    def _pixels(self, members: Mapping[str, bytes], draw: Draw) -> np.ndarray:
        image = decode_image(members, draft=self.draft)
        if self.augmentation is not None:
            generator = np.random.Generator(np.random.PCG64(draw("augmentation", 1 << 128)))
            image = self.augmentation(to_rgb(image), generator)
        return self.image_transform.cropped(image)

    def _draw_language(self, captions: Mapping[str, list[str]], draw: Draw) -> str:
        languages = sorted(captions if self.languages is None else captions.keys() & self.languages)
        weights = [self.language_weights.get(language, 1.0) for language in languages]
        if sum(weights) <= 0:
            raise BadSample("language_missing", f"languages: {', '.join(captions) or 'none'}")
        point = draw("language", 1 << 53) / (1 << 53) * sum(weights)
        return languages[min(bisect_right(list(accumulate(weights)), point), len(languages) - 1)]

    def batch(self, records: Sequence[ImageText], skipped: Sequence[SkippedSample]) -> ImageTextBatch:
        captions = [record.caption for record in records]
        cached, _ = _join([record.features for record in records])
        pictures = [record.pixels for record in records if record.pixels is not None]
        return ImageTextBatch(
            pixel_values=_stacked(pictures) if pictures else None,
            text=self.tokenizer.pack(captions, self.max_length),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions]),
            languages=[record.language for record in records],
            keys=[record.key for record in records],
            skipped=skipped,
            cached=cached,
        )


def _stacked(pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures (B, R, R, 3) uint8; of a loader process, in memory that the trainer shares: nothing is copied again."""
    if get_worker_info() is None:
        return torch.from_numpy(np.stack(pictures))
    shape = (len(pictures), *pictures[0].shape)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own collate makes it
    batch = torch.empty(0, dtype=torch.uint8)
    batch.set_(storage, 0, shape)  # pyright: ignore[reportCallIssue] - the stub wants a typed storage
    np.stack(pictures, out=batch.numpy())
    return batch


def _join(found: Sequence[Cached | None]) -> tuple[CachedVectors | None, list[int]]:
    """What the cache has for the entries of a batch, and the places of those to compute."""
    entries = [entry for entry in found if entry is not None]
    if not entries:
        return None, list(range(len(found)))
    missing = [place for place, entry in enumerate(entries) if entry.vector is None]
    places = [place for place, entry in enumerate(entries) if entry.vector is not None]
    vectors = [entry.vector for entry in entries if entry.vector is not None]
    cached = CachedVectors(
        vectors=torch.from_numpy(np.stack(vectors)) if vectors else None,
        places=torch.tensor(places, dtype=torch.int64),
        missing=torch.tensor(missing, dtype=torch.int64),
        rows=[(entries[place].shard, entries[place].row) for place in missing],
    )
    return cached, missing


def caption_id(caption: str) -> int:
    """63 bits that are equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little") >> 1


def _captions(members: Mapping[str, bytes], source: Source, *, normalize_full_width: bool) -> dict[str, list[str]]:
    """Captions of a sample in the languages that its source allows."""
    captions = decode_captions(members, default_language=source.default_language)
    if normalize_full_width:
        captions = {language: list(map(narrow, texts)) for language, texts in captions.items()}
    if source.languages is None:
        return captions
    return {language: captions[language] for language in source.languages if language in captions}


def _language_weights(named: Mapping[str, float], languages: set[str] | None) -> dict[str, float]:
    weights = {language_code(code): float(weight) for code, weight in named.items()}
    if len(weights) < len(named) or not all(0 <= weight < math.inf for weight in weights.values()):
        raise ValueError(f"language_weights={dict(named)}: expected one finite weight >= 0 per language")
    if languages is not None and (others := sorted(weights.keys() - languages)):
        raise ValueError(
            f"language_weights={dict(named)} names {', '.join(others)}, which languages={sorted(languages)} lacks: "
            "add it there or take its weight away"
        )
    if languages is not None and not any(weights.get(language, 1.0) for language in languages):
        raise ValueError(f"language_weights={dict(named)}: none of languages={sorted(languages)} is left to draw")
    return weights

"""Map-style datasets over planned shards: a list of positions in, a finished batch out.

Use them with ``DataLoader(dataset, batch_sampler=PlannedBatchSampler(...), collate_fn=lambda batch: batch)``.
"""

from __future__ import annotations

import hashlib
import math
import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from altclip_train.data.cache import ShardCache
from altclip_train.data.plan import Plan, SampleRef, stable_hash
from altclip_train.data.samples import (
    BadSample,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_text_field,
    narrow,
)
from altclip_train.data.shards import MemberTooLarge, ShardReader, expand_urls
from altclip_train.data.sources import Source, language_code
from altclip_train.processing.images import to_rgb
from altclip_train.types import ImageTextBatch, PackedTokens, SkippedSample, TextPairBatch

Record = TypeVar("Record")
ENGLISH = "en"
NEAR, FAR = 8, 1000  # samples tried in place of a bad one, in its shard and then in its source
AHEAD = 8192  # positions, about two windows of the plan, whose remote shards are fetched before they are read


class Packer(Protocol):
    """The part of a tokenizer that datasets use."""

    def pack(self, texts: Sequence[str], max_length: int) -> PackedTokens: ...


class PairDataset(ABC, Dataset[Any], Generic[Record]):
    """Sources, their plan and the replacement of bad samples; subclasses decode and batch.

    A sample that cannot be used is replaced by another of its source, so that every position yields one and all
    ranks keep in step; batches name it in ``skipped``. Everything is a pure function of the position: nothing
    depends on which process reads it. ``fingerprint`` stands for the plan and the contents of all shards.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        plan_seed: int,
        wanted: Callable[[str], bool],
        normalize_full_width: bool,
        cache: ShardCache | None,
    ) -> None:
        self.sources = [Source.from_config(source) for source in sources]
        if not self.sources:
            raise ValueError("no data source is given")
        self.seed = operator.index(plan_seed)
        self.normalize_full_width = normalize_full_width
        shards = [expand_urls(source.urls) for source in self.sources]
        self.reader = ShardReader([path for paths in shards for path in paths], wanted=wanted, cache=cache)
        self._looked_ahead = range(0)
        self._first_shards = list(accumulate(map(len, shards), initial=0))
        shard_counts = [self.reader.counts[start:end] for start, end in pairwise(self._first_shards)]
        self._sample_starts = [list(accumulate(counts, initial=0)) for counts in shard_counts]
        for source, counts in zip(self.sources, shard_counts, strict=True):
            if sum(counts) == 0:
                raise ValueError(f"source {source.label!r} has no samples in its {len(counts)} shards: check its urls")
        self.plan = Plan(shard_counts=shard_counts, weights=self._weights(shard_counts), seed=plan_seed)
        self.fingerprint = hashlib.sha256((self.plan.fingerprint + self.reader.fingerprint).encode()).hexdigest()

    def _weights(self, shard_counts: Sequence[Sequence[int]]) -> list[float]:
        weights = [source.weight for source in self.sources]
        if all(weight is None for weight in weights):
            return [sum(counts) for counts in shard_counts]
        missing = [source.label for source in self.sources if source.weight is None]
        if missing:
            raise ValueError(f"source {missing[0]!r} has no weight but others have: give one to all or to none")
        return [weight for weight in weights if weight is not None]

    def __len__(self) -> int:
        return self.plan.epoch_samples

    @property
    def samples(self) -> list[int]:
        """Samples of each source."""
        return [starts[-1] for starts in self._sample_starts]

    def records(self, positions: Sequence[int]) -> tuple[list[Record], list[SkippedSample]]:
        """A usable decoded sample for each position of the plan, and the planned samples that are not usable."""
        self._look_ahead(positions)
        skipped: list[SkippedSample] = []
        return [self._record(self.plan[position], skipped) for position in positions], skipped

    def _look_ahead(self, positions: Sequence[int]) -> None:
        """Let the reader fetch the remote shards of the coming positions."""
        if not self.reader.remote or not positions or positions[0] in self._looked_ahead:
            return
        self._looked_ahead = range(positions[0], positions[0] + AHEAD // 8)
        coming = range(positions[0], positions[0] + AHEAD, 16)  # a block of 256 samples has some of them
        self.reader.will_need(list(dict.fromkeys(self._place(self.plan[position])[0] for position in coming)))

    def _record(self, ref: SampleRef, skipped: list[SkippedSample]) -> Record:
        try:
            return self._read(ref)
        except BadSample as error:
            shard, sample = self._place(ref)
            bad = SkippedSample(error.reason, str(self.reader.shards[shard]), self._key(shard, sample), error.detail)
        skipped.append(bad)
        for index in self._substitutes(ref):
            with suppress(BadSample):  # it is named where the plan visits it
                return self._read(replace(ref, index=index))
        raise ValueError(
            f"source {self.sources[ref.source].label!r} has no sample that can be used among {NEAR + FAR} tried "
            f"in place of {bad.key!r} in {bad.shard} ({bad.reason}: {bad.detail or 'no details'}): mend or remove it"
        )

    def _substitutes(self, ref: SampleRef) -> Iterator[int]:
        """Samples to try instead: a few drawn from the same shard, which is at hand, then from the whole source."""
        starts = self._sample_starts[ref.source]
        shard = bisect_right(starts, ref.index) - 1
        for tried in range(NEAR + FAR):
            first, end = (starts[shard], starts[shard + 1]) if tried < NEAR else (0, starts[-1])
            yield first + self.draw(f"substitute {tried}", ref, end - first)

    def _place(self, ref: SampleRef) -> tuple[int, int]:
        """The reader's shard that holds a sample, and the sample's number in it."""
        starts = self._sample_starts[ref.source]
        shard = bisect_right(starts, ref.index) - 1
        return self._first_shards[ref.source] + shard, ref.index - starts[shard]

    def _read(self, ref: SampleRef) -> Record:
        shard, sample = self._place(ref)
        try:
            members, key = self.reader.read(shard, sample), self.reader.key(shard, sample)
        except MemberTooLarge as error:
            raise BadSample("member_bytes", str(error)) from error
        except OSError as error:
            raise BadSample("unreadable", str(error)) from error
        return self.decode(ref, key, members)

    def _key(self, shard: int, sample: int) -> str:
        try:
            return self.reader.key(shard, sample)
        except OSError:  # the shard is gone, and its index with it
            return f"sample {sample}"

    @abstractmethod
    def decode(self, ref: SampleRef, key: str, members: dict[str, bytes]) -> Record:
        """One sample as it enters a batch; pure in (seed, ref). Raises BadSample."""

    def captions(self, ref: SampleRef, members: dict[str, bytes]) -> dict[str, list[str]]:
        """Captions of a sample in the languages that its source allows."""
        source = self.sources[ref.source]
        captions = decode_captions(members, default_language=source.default_language)
        if self.normalize_full_width:
            captions = {language: list(map(narrow, texts)) for language, texts in captions.items()}
        if source.languages is None:
            return captions
        return {language: captions[language] for language in source.languages if language in captions}

    def draw(self, purpose: str, ref: SampleRef, choices: int) -> int:
        """A number below ``choices``, the same for every visit of this sample in this source epoch."""
        if choices == 1:
            return 0
        return stable_hash(purpose, self.seed, ref.source, ref.index, ref.source_epoch) % choices


class TextPair(NamedTuple):
    key: str
    language: str
    text: str
    english: str


class TextPairDataset(PairDataset[TextPair]):
    """Stage one: a visit of an entry gives its English and one other language, drawn per source epoch."""

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        plan_seed: int,
        student_tokenizer: Packer,
        teacher_tokenizer: Packer,
        max_length: int,
        languages: Sequence[str] | None = None,
        normalize_full_width: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        """``languages`` other than English to draw from (default: all that an entry has)."""
        super().__init__(
            sources=sources,
            plan_seed=plan_seed,
            wanted=is_caption_field,
            normalize_full_width=normalize_full_width,
            cache=cache,
        )
        self.student_tokenizer = student_tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.max_length = max_length
        self.languages = None if languages is None else {language_code(code) for code in languages} - {ENGLISH}

    def decode(self, ref: SampleRef, key: str, members: dict[str, bytes]) -> TextPair:
        captions = self.captions(ref, members)
        if ENGLISH not in captions:
            raise BadSample("english_missing", f"languages: {', '.join(captions) or 'none'}")
        others = sorted(captions.keys() - {ENGLISH} if self.languages is None else captions.keys() & self.languages)
        if not others:
            raise BadSample("language_missing", f"languages: {', '.join(captions)}")
        lengths = {language: len(captions[language]) for language in (ENGLISH, *others)}
        if len(set(lengths.values())) > 1:
            raise BadSample("captions_unaligned", f"numbers of texts: {lengths}")
        language = others[self.draw("language", ref, len(others))]
        place = self.draw("caption", ref, lengths[ENGLISH])
        return TextPair(key, language, captions[language][place], captions[ENGLISH][place])

    def __getitems__(self, positions: Sequence[int]) -> TextPairBatch:
        pairs, skipped = self.records(positions)
        english = [pair.english for pair in pairs]
        return TextPairBatch(
            student=self.student_tokenizer.pack([*(pair.text for pair in pairs), *english], self.max_length),
            teacher=self.teacher_tokenizer.pack(english, self.max_length),
            languages=[pair.language for pair in pairs],
            keys=[pair.key for pair in pairs],
            skipped=skipped,
        )


class ImageText(NamedTuple):
    key: str
    language: str
    caption: str
    pixel_values: Tensor  # (3, R, R)


class ImageTextDataset(PairDataset[ImageText]):
    """Stage two: each visit of a sample gives its picture and one caption, drawn anew per source epoch."""

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        plan_seed: int,
        tokenizer: Packer,
        image_transform: Callable[[Image.Image], Tensor],
        max_length: int,
        augmentation: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None,
        draft: Callable[[int, int], tuple[int, int]] | None = None,
        languages: Sequence[str] | None = None,
        language_weights: Mapping[str, float] | None = None,
        normalize_full_width: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        """Of the ``languages`` (default: all) that a sample has, one is drawn by ``language_weights``, 1 if not named.

        ``draft`` is that of :func:`~altclip_train.data.samples.decode_image`.
        """
        super().__init__(
            sources=sources,
            plan_seed=plan_seed,
            wanted=is_image_text_field,
            normalize_full_width=normalize_full_width,
            cache=cache,
        )
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.augmentation, self.draft = augmentation, draft
        self.max_length = max_length
        self.languages = None if languages is None else {language_code(code) for code in languages}
        self.language_weights = _language_weights(language_weights or {}, self.languages)

    def decode(self, ref: SampleRef, key: str, members: dict[str, bytes]) -> ImageText:
        captions = self.captions(ref, members)
        language = self._draw_language(ref, captions)
        texts = captions[language]
        image = decode_image(members, draft=self.draft)
        if self.augmentation is not None:
            generator = np.random.Generator(np.random.PCG64(self.draw("augmentation", ref, 1 << 128)))
            image = self.augmentation(to_rgb(image), generator)
        caption = texts[self.draw("caption", ref, len(texts))]
        return ImageText(key, language, caption, self.image_transform(image))

    def _draw_language(self, ref: SampleRef, captions: Mapping[str, list[str]]) -> str:
        languages = sorted(captions if self.languages is None else captions.keys() & self.languages)
        weights = [self.language_weights.get(language, 1.0) for language in languages]
        if sum(weights) <= 0:
            raise BadSample("language_missing", f"languages: {', '.join(captions) or 'none'}")
        point = self.draw("language", ref, 1 << 53) / (1 << 53) * sum(weights)
        return languages[min(bisect_right(list(accumulate(weights)), point), len(languages) - 1)]

    def __getitems__(self, positions: Sequence[int]) -> ImageTextBatch:
        records, skipped = self.records(positions)
        captions = [record.caption for record in records]
        return ImageTextBatch(
            pixel_values=torch.stack([record.pixel_values for record in records]),
            text=self.tokenizer.pack(captions, self.max_length),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions]),
            languages=[record.language for record in records],
            keys=[record.key for record in records],
            skipped=skipped,
        )


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


def caption_id(caption: str) -> int:
    """63 bits that are equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little") >> 1

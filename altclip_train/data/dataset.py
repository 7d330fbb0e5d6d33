"""Map-style datasets over planned shards: a list of positions in, a finished batch out.

Use them with ``DataLoader(dataset, batch_sampler=PlannedBatchSampler(...), collate_fn=lambda batch: batch)``.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import operator
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from altclip_train.data.plan import Plan, SampleRef, stable_hash
from altclip_train.data.samples import (
    BadSample,
    SkipCounter,
    decode_captions,
    decode_image,
    is_caption_field,
    is_image_text_field,
    normalize_language,
)
from altclip_train.data.shards import ShardReader, expand_urls
from altclip_train.processing.images import to_rgb
from altclip_train.types import ImageTextBatch, PackedTokens, TextPairBatch

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
ENGLISH = "en"


class Packer(Protocol):
    """The part of a tokenizer that datasets use."""

    def pack(self, texts: Sequence[str], max_length: int) -> PackedTokens: ...


@dataclass
class Source:
    """Shards that belong together.

    ``weight`` is their share of what is drawn, in any unit; by default every sample is drawn equally often.
    ``languages`` limits which captions are used; if it names one, plain ``txt`` captions are in it.
    """

    urls: str | Path | Sequence[str | Path]
    weight: float | None = None
    languages: Sequence[str] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.languages, str):
            raise ValueError(f"languages={self.languages!r} of source {self.label!r}: give a list of language codes")
        if self.languages is not None:
            self.languages = [language_code(code) for code in self.languages]

    @classmethod
    def from_config(cls, config: Source | str | Path | Mapping[str, Any]) -> Source:
        """A source from a mapping of its fields, or from one url. Raises ValueError for an unknown field."""
        if isinstance(config, Source):
            return config
        if isinstance(config, str | Path):
            return cls(urls=config)
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"a source has {', '.join(known)}"
                raise ValueError(f"unknown key {key!r} in a data source: {hint}")
        if "urls" not in config:
            raise ValueError(f"a data source needs 'urls', got only {', '.join(config) or 'nothing'}")
        return cls(**config)

    @property
    def label(self) -> str:
        """What messages call this source."""
        urls = [self.urls] if isinstance(self.urls, str | Path) else self.urls
        return self.name or ", ".join(map(str, urls))

    @property
    def default_language(self) -> str | None:
        return self.languages[0] if self.languages is not None and len(self.languages) == 1 else None


def language_code(code: str) -> str:
    """BCP-47 spelling of ``code``. Raises ValueError if it is no language code."""
    # YAML reads an unquoted no, which is Norwegian, as false.
    language = normalize_language(code) if isinstance(code, str) else None
    if language is None:
        raise ValueError(f"{code!r} is no language code: expected one such as 'en', 'zh' or 'pt-BR', in quotes")
    return language


class PairDataset(ABC, Dataset[Any], Generic[Record]):
    """Sources, their plan and the replacement of bad samples; subclasses decode and batch.

    A sample that cannot be used is replaced by the next usable one of its source, so that every position
    yields one and all ranks keep in step. ``fingerprint`` stands for the plan and the contents of all shards.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        plan_seed: int,
        max_bad_fraction: float,
        wanted: Callable[[str], bool],
    ) -> None:
        self.sources = [Source.from_config(source) for source in sources]
        if not self.sources:
            raise ValueError("no data source is given")
        self.seed = operator.index(plan_seed)
        self.skipped = SkipCounter(max_bad_fraction)
        shards = [expand_urls(source.urls) for source in self.sources]
        self.reader = ShardReader([path for paths in shards for path in paths], wanted=wanted)
        self._first_shards = list(accumulate(map(len, shards), initial=0))
        shard_counts = [
            self.reader.counts[start:end]
            for start, end in zip(self._first_shards, self._first_shards[1:], strict=False)
        ]
        self._sample_starts = [list(accumulate(counts, initial=0)) for counts in shard_counts]
        for source, counts in zip(self.sources, shard_counts, strict=True):
            if sum(counts) == 0:
                raise ValueError(
                    f"source {source.label!r} has no samples in its {len(counts)} shards: check its urls, {source.urls}"
                )
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

    def records(self, positions: Sequence[int]) -> list[Record]:
        """A usable decoded sample for each position of the plan."""
        return [self._record(self.plan[position]) for position in positions]

    def _record(self, ref: SampleRef) -> Record:
        starts = self._sample_starts[ref.source]
        for tried in range(starts[-1]):
            sample = (ref.index + tried) % starts[-1]
            shard_of_source = bisect_right(starts, sample) - 1
            shard = self._first_shards[ref.source] + shard_of_source
            in_shard = sample - starts[shard_of_source]
            try:
                members = self._read(shard, in_shard)
                record = self.decode(replace(ref, index=sample), self.reader.key(shard, in_shard), members)
            except BadSample as error:
                where = f"{self.reader.key(shard, in_shard)!r} in {self.reader.shards[shard]}"
                if error.reason not in self.skipped.reasons:
                    logger.warning("skipped sample %s: %s", where, error)
                self.skipped.bad(error, where)
            else:
                self.skipped.good()
                return record
        label = self.sources[ref.source].label
        raise ValueError(f"source {label!r} has no sample that can be used. {self.skipped.summary()}")

    def _read(self, shard: int, sample: int) -> dict[str, bytes]:
        try:
            return self.reader.read(shard, sample)
        except OSError as error:
            raise BadSample("unreadable", str(error)) from error

    @abstractmethod
    def decode(self, ref: SampleRef, key: str, members: dict[str, bytes]) -> Record:
        """One sample as it enters a batch; pure in (seed, ref). Raises BadSample."""

    def captions(self, ref: SampleRef, members: dict[str, bytes]) -> dict[str, list[str]]:
        """Captions of a sample in the languages that its source allows."""
        source = self.sources[ref.source]
        captions = decode_captions(members, default_language=source.default_language)
        if source.languages is None:
            return captions
        return {language: captions[language] for language in source.languages if language in captions}

    def draw(self, purpose: str, ref: SampleRef, choices: int) -> int:
        """A number below ``choices``, the same for every visit of this sample in this source epoch."""
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
        max_bad_fraction: float = 0.01,
    ) -> None:
        """``languages`` other than English to draw from (default: all that an entry has)."""
        super().__init__(
            sources=sources, plan_seed=plan_seed, max_bad_fraction=max_bad_fraction, wanted=is_caption_field
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
        pairs = self.records(positions)
        english = [pair.english for pair in pairs]
        return TextPairBatch(
            student=self.student_tokenizer.pack([*(pair.text for pair in pairs), *english], self.max_length),
            teacher=self.teacher_tokenizer.pack(english, self.max_length),
            languages=[pair.language for pair in pairs],
            keys=[pair.key for pair in pairs],
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
        languages: Mapping[str, float] | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        """``languages`` are the weights by which one is drawn of those a sample has (default: equal)."""
        super().__init__(
            sources=sources,
            plan_seed=plan_seed,
            max_bad_fraction=max_bad_fraction,
            wanted=is_image_text_field,
        )
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.augmentation = augmentation
        self.max_length = max_length
        self.language_weights = _language_weights(languages)

    def decode(self, ref: SampleRef, key: str, members: dict[str, bytes]) -> ImageText:
        captions = self.captions(ref, members)
        language = self._draw_language(ref, captions)
        texts = captions[language]
        image = decode_image(members)
        if self.augmentation is not None:
            generator = np.random.Generator(np.random.PCG64(self.draw("augmentation", ref, 1 << 128)))
            image = self.augmentation(to_rgb(image), generator)
        caption = texts[self.draw("caption", ref, len(texts))]
        return ImageText(key, language, caption, self.image_transform(image))

    def _draw_language(self, ref: SampleRef, captions: Mapping[str, list[str]]) -> str:
        languages = sorted(captions)
        if self.language_weights is None:
            weights = [1.0] * len(languages)
        else:
            weights = [self.language_weights.get(language, 0.0) for language in languages]
        if sum(weights) <= 0:
            raise BadSample("language_missing", f"languages: {', '.join(languages) or 'none'}")
        point = self.draw("language", ref, 1 << 53) / (1 << 53) * sum(weights)
        return languages[min(bisect_right(list(accumulate(weights)), point), len(languages) - 1)]

    def __getitems__(self, positions: Sequence[int]) -> ImageTextBatch:
        records = self.records(positions)
        captions = [record.caption for record in records]
        return ImageTextBatch(
            pixel_values=torch.stack([record.pixel_values for record in records]),
            text=self.tokenizer.pack(captions, self.max_length),
            caption_ids=torch.tensor([caption_id(caption) for caption in captions]),
            languages=[record.language for record in records],
            keys=[record.key for record in records],
        )


def _language_weights(languages: Mapping[str, float] | None) -> dict[str, float] | None:
    if languages is None:
        return None
    weights = {language_code(code): float(weight) for code, weight in languages.items()}
    if len(weights) < len(languages) or min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"languages={dict(languages)}: expected a weight >= 0 per language, not all of them 0")
    return weights


def caption_id(caption: str) -> int:
    """63 bits that are equal for equal captions."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little") >> 1

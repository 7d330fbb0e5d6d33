"""`altclip embed URLS --for …`: the frozen half of a stage, computed once and kept beside the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from altclip_train.data.cache import ShardCache
from altclip_train.data.embeddings import IMAGE, EmbeddingStore, captions_of, teacher_name
from altclip_train.data.samples import is_caption_field, is_image_field
from altclip_train.data.shards import ShardReader
from altclip_train.data.sidecars import Sidecar
from altclip_train.data.sources import language_code
from altclip_train.data.urls import expand_urls
from altclip_train.embedding.features import (
    TEXTS_AT_ONCE,
    picture_features,
    progress_bar,
    read_members,
    text_features,
)
from altclip_train.models import load_clip_text, load_model
from altclip_train.models.fingerprint import image_fingerprint, text_fingerprint
from altclip_train.processing import CLIPTokenizer, ImageTransform, load_tokenizer
from altclip_train.types import SkippedSample

LISTED = 20  # damaged samples that are printed


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which shards, and how their embeddings are kept."""

    urls: Sequence[str]
    part: tuple[int, int] = (0, 1)
    dtype: str = "float16"
    directory: str | Path | None = None
    device: str = "cpu"
    cache: ShardCache | None = None

    def reader(self, wanted: Callable[[str], bool]) -> ShardReader:
        own, parts = self.part
        return ShardReader(expand_urls(self.urls)[own::parts], wanted=wanted, cache=self.cache)


@dataclass(kw_only=True)
class Coverage:
    """What the sidecars of this part hold."""

    unit: str
    shards: int = 0
    rows: int = 0
    filled: int = 0
    computed: int = 0  # now; the others were there
    left_out: int = 0  # samples that have no embedding
    skipped: list[SkippedSample] = field(default_factory=list)  # those of them that were looked at now

    def add(self, sidecar: Sidecar, missing: int) -> None:
        """Count a shard of which so many rows had been missing."""
        filled = int(sidecar.filled.sum())
        self.shards += 1
        self.rows += len(sidecar.filled)
        self.filled += filled
        self.computed += filled - (len(sidecar.filled) - missing)
        self.left_out += int((np.diff(sidecar.offsets) == 0).sum()) + len(sidecar.filled) - filled

    def lines(self) -> list[str]:
        share = f"{self.filled:,} of {self.rows:,} {self.unit} of {self.shards:,} shards are embedded"
        lines = [f"{share}, {self.computed:,} of them now"]
        if self.left_out:
            reasons = Counter(sample.reason for sample in self.skipped)
            counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
            lines.append(f"{self.left_out:,} samples left out{': ' * bool(counts)}{counts}")
        lines += [f"  {bad.shard}: {bad.key}: {bad.reason}: {bad.detail}" for bad in self.skipped[:LISTED]]
        return [*lines, f"  … and {len(self.skipped) - LISTED:,} more"] if len(self.skipped) > LISTED else lines


def embed_teacher(
    clip: str | Path, job: Job, *, language: str = "en", max_length: int = 77, normalize_full_width: bool = False
) -> Coverage:
    """The target of stage one: the pooled state, before the projection, of each text in a language."""
    language = language_code(language)
    tower, tokenizer = load_clip_text(clip).to(job.device), load_tokenizer(clip)
    if not isinstance(tokenizer, CLIPTokenizer):
        raise ValueError(f"the tokenizer in {clip} is no CLIP tokenizer: give the directory of a whole CLIP")
    fingerprint = text_fingerprint(
        tower,
        tokenizer=tokenizer.fingerprint,
        max_length=max_length,
        language=language,
        normalize_full_width=normalize_full_width,
        dtype=job.dtype,
    )
    reader = job.reader(is_caption_field)
    # Once for the offsets of a new sidecar and for its vectors.
    captions = lru_cache(maxsize=1)(
        partial(captions_of, reader, language=language, normalize_full_width=normalize_full_width)
    )
    store = EmbeddingStore(
        reader.shards,
        reader.digests,
        name=teacher_name(language),
        fingerprint=fingerprint,
        width=tower.output_width,
        directory=job.directory,
        entries=lambda shard: [len(texts) for texts in captions(shard)[0]],
    )
    encode = partial(text_features, tower.encode_packed, tokenizer, max_length=max_length, device=tower.device)
    coverage = Coverage(unit="texts")
    with progress_bar() as bar:
        for shard, sidecar, done in _unfinished(reader, store, coverage, bar):
            by_sample, skipped = captions(shard)
            coverage.skipped += skipped
            texts = [text for sample in by_sample for text in sample]
            for rows in _chunks(sidecar.missing()):
                sidecar.write(rows, encode([texts[row] for row in rows]), sync=True)
                done(len(rows))
    return coverage


def embed_contrastive(model: str | Path, job: Job) -> Coverage:
    """The frozen half of stage two: the projected features of each picture, not normalised.

    A sample has one row; where it has no sound picture the row stays as it is.
    """
    towers, transform = load_model(model).to(job.device), ImageTransform.from_pretrained(model)
    reader = job.reader(is_image_field)
    store = EmbeddingStore(
        reader.shards,
        reader.digests,
        name=IMAGE,
        fingerprint=image_fingerprint(towers, transform=transform.to_dict(), draft=False, dtype=job.dtype),
        width=towers.config.projection_dim,
        directory=job.directory,
        entries=lambda shard: [1] * reader.counts[shard],
    )
    encode = partial(picture_features, towers.encode_image, transform, device=towers.device)
    coverage = Coverage(unit="pictures")
    with progress_bar() as bar:
        for shard, sidecar, done in _unfinished(reader, store, coverage, bar):
            rows = sidecar.missing()  # which are numbers of samples, too
            for found in encode(read_members(partial(reader.read, shard, row)) for row in rows.tolist()):
                if found.places:
                    sidecar.write(rows[found.places], found.features, sync=True)
                for place, bad in found.damaged.items():
                    key = reader.key(shard, int(rows[place]))
                    coverage.skipped.append(SkippedSample(bad.reason, str(reader.shards[shard]), key, bad.detail))
                done(len(found.places) + len(found.damaged))
    return coverage


def _unfinished(
    reader: ShardReader, store: EmbeddingStore, coverage: Coverage, bar: Progress
) -> Iterator[tuple[int, Sidecar, Callable[[int], None]]]:
    """Each shard with rows to fill, its sidecar, and what tells the bar of rows that are done."""
    total = sum(reader.counts)  # an estimate until a shard is opened: of texts a sample may have several
    task = bar.add_task(coverage.unit, total=total)
    for shard, samples in enumerate(reader.counts):
        sidecar = store.sidecar(shard)
        assert sidecar is not None, "this store makes what is not there"
        missing = len(sidecar.missing())
        total += missing - samples
        bar.update(task, total=total)
        if missing:
            reader.will_need(range(shard, min(shard + 2, len(reader.counts))))
            yield shard, sidecar, partial(bar.advance, task)
        coverage.add(sidecar, missing)


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Ascending row numbers in runs that begin at the same rows however often the work was broken off."""
    return iter(np.split(rows, np.flatnonzero(np.diff(rows // TEXTS_AT_ONCE)) + 1))

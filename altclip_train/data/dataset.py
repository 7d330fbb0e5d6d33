"""A map-style dataset over planned shards: a list of positions in, a finished batch out.

Use it with ``DataLoader(dataset, batch_sampler=PlannedBatchSampler(...), collate_fn=already_a_batch)``.
"""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Generic

from torch.utils.data import Dataset

from altclip_train.data.cache import ShardCache
from altclip_train.data.decoders import Cached, Decoder, Record
from altclip_train.data.embeddings import EmbeddingStore
from altclip_train.data.index import ShardState
from altclip_train.data.plan import Plan, SampleRef, stable_hash
from altclip_train.data.remote_index import manifest_headers
from altclip_train.data.samples import BadSample
from altclip_train.data.shards import MemberTooLarge, ShardReader
from altclip_train.data.sources import Source, weights_of
from altclip_train.data.urls import Shard, expand_urls
from altclip_train.types import SkippedSample

NEAR, FAR = 8, 1000  # samples tried in place of a bad one, in its shard and then in its source
AHEAD = 8192  # positions, about two windows of the plan, whose remote shards are fetched before they are read


class PairDataset(Dataset[Any], Generic[Record]):
    """Sources, their plan and the replacement of bad samples; ``decoder`` makes records and batches.

    A sample that cannot be used is replaced by another of its source, so that every position yields one and all
    ranks keep in step; batches name it in ``skipped``. Everything is a pure function of the position: nothing
    depends on which process reads it. ``fingerprint`` stands for the plan and the contents of all shards.
    """

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        plan_seed: int,
        decoder: Decoder[Record],
        cache: ShardCache | None = None,
    ) -> None:
        self.sources = [Source.from_config(source) for source in sources]
        if not self.sources:
            raise ValueError("no data source is given")
        self.seed = operator.index(plan_seed)
        self.embeddings: EmbeddingStore | None = None  # what a frozen tower makes of the entries, where it is known
        self.decoder = decoder
        shards = [expand_urls(source.urls) for source in self.sources]
        cache = cache or ShardCache()
        known: dict[Shard, tuple[ShardState, dict[str, Any]]] = {}
        for source, paths in zip(self.sources, shards, strict=True):
            if source.manifest is not None:
                known |= manifest_headers(expand_urls(source.manifest), paths, cache)
        every = [path for paths in shards for path in paths]
        self.reader = ShardReader(every, wanted=decoder.wanted, cache=cache, known=known)
        self._looked_ahead = range(0)
        self._first_shards = list(accumulate(map(len, shards), initial=0))
        shard_counts = [self.reader.counts[start:end] for start, end in pairwise(self._first_shards)]
        self._sample_starts = [list(accumulate(counts, initial=0)) for counts in shard_counts]
        for source, counts in zip(self.sources, shard_counts, strict=True):
            if sum(counts) == 0:
                raise ValueError(f"source {source.label!r} has no samples in its {len(counts)} shards: check its urls")
        weights = weights_of(self.sources, default=list(map(sum, shard_counts)))
        self.plan = Plan(shard_counts=shard_counts, weights=weights, seed=plan_seed)
        self.fingerprint = hashlib.sha256((self.plan.fingerprint + self.reader.fingerprint).encode()).hexdigest()

    def __len__(self) -> int:
        return self.plan.epoch_samples

    @property
    def samples(self) -> list[int]:
        """Samples of each source."""
        return [starts[-1] for starts in self._sample_starts]

    def __getitems__(self, positions: Sequence[int]) -> Any:
        """The batch of these positions of the plan."""
        return self.decoder.batch(*self.records(positions))

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
                return self._read(ref._replace(index=index))
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
            yield first + self.draw(ref, f"substitute {tried}", end - first)

    def undecoded(self, position: int) -> tuple[str, Source, dict[str, bytes]]:
        """Key, source and members of the sample at a position of the plan. Raises OSError when it cannot be read."""
        ref = self.plan[position]
        shard, sample = self._place(ref)
        return self.reader.key(shard, sample), self.sources[ref.source], self.reader.read(shard, sample)

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
        cache = None if self.embeddings is None else partial(self._cached, self.embeddings, shard, sample)
        return self.decoder.decode(members, key, self.sources[ref.source], partial(self.draw, ref), cache)

    def _cached(self, embeddings: EmbeddingStore, shard: int, sample: int, entry: int) -> Cached:
        row = embeddings.row_number(shard, sample, entry)
        return Cached(embeddings.row(shard, sample, entry), shard, -1 if row is None else row)

    def _key(self, shard: int, sample: int) -> str:
        try:
            return self.reader.key(shard, sample)
        except OSError:  # the shard is gone, and its index with it
            return f"sample {sample}"

    def draw(self, ref: SampleRef, purpose: str, choices: int) -> int:
        """A number below ``choices``, the same for every visit of this sample in this source epoch."""
        if choices == 1:
            return 0
        return stable_hash(purpose, self.seed, ref.source, ref.index, ref.source_epoch) % choices

"""What both datamodules share: settings, the training loader, its position, and the cache of frozen vectors.

The data position is counted from trained steps, never from fetched batches, so a prefetched batch is not
lost on resume; it is the same on every rank and does not mention ranks or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from altclip_train import distributed
from altclip_train.data.cache import ShardCache
from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import Decoder
from altclip_train.data.embeddings import EmbeddingStore, sidecar_path
from altclip_train.data.loaders import PlannedLoader, TrainLoader
from altclip_train.data.processes import start_loader_server
from altclip_train.data.sampler import PlannedBatchSampler, own_places
from altclip_train.data.shards import ShardReader
from altclip_train.data.sidecars import DTYPES
from altclip_train.data.starter import ensure_starter
from altclip_train.data.streaming import PROMISE, StreamedPairs
from altclip_train.types import ImageTextBatch, TextPairBatch

READ, FILL = "read", "fill"
STREAMING = "streaming"
MODES = ("indexed", STREAMING)


@dataclass(kw_only=True, eq=False)
class TrainingData(L.LightningDataModule):
    """What the two datamodules share: the training loader and its position in the endless order."""

    starter: str | None
    languages: list[str] | None
    max_length: int
    normalize_full_width: bool
    global_batch_size: int
    epoch_samples: int | None
    num_workers: int
    seed: int
    max_bad_fraction: float
    cache_dir: str | None
    cache_bytes: int
    mode: str = "indexed"
    allow_pipe: bool = False
    embeddings: str | None = READ
    embeddings_dir: str | None = None
    embeddings_dtype: str = "float16"
    train_set: PairDataset[Any] | StreamedPairs[Any] = field(init=False)
    accept_other_data: bool = field(init=False, default=False)  # of a checkpoint that was made on other data
    _restored: int = field(init=False, default=0)  # position of the checkpoint that the run goes on from

    def __post_init__(self) -> None:
        super().__init__()
        if self.global_batch_size < 1:
            raise ValueError(f"data.global_batch_size={self.global_batch_size}: expected at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction}: it is a fraction, from 0 to 1")
        self._check_mode()
        if self.num_workers > 0:
            start_loader_server()
        self.cache = ShardCache(self.cache_dir, self.cache_bytes)

    def _check_mode(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"data.mode={self.mode!r}: expected one of {', '.join(MODES)}")
        if self.allow_pipe and self.mode != STREAMING:
            raise ValueError(f"data.allow_pipe=true: what a command writes can only be read with data.mode={STREAMING}")
        if self.epoch_samples is not None and self.mode == STREAMING:
            raise ValueError(
                f"data.epoch_samples={self.epoch_samples}: data.mode={STREAMING} has no epochs; set it to null, and "
                "trainer.max_steps and trainer.val_check_interval in steps"
            )

        if self.embeddings not in (None, READ, FILL):
            raise ValueError(f"data.embeddings={self.embeddings!r}: expected {READ}, {FILL} or null")
        if self.embeddings_dtype not in DTYPES:
            raise ValueError(f"data.embeddings_dtype={self.embeddings_dtype!r}: expected {' or '.join(DTYPES)}")
        if self.embeddings == FILL and self.mode == STREAMING:
            raise ValueError(
                f"data.embeddings={FILL} needs data.mode=indexed: a stream does not say which sample it is at"
            )

    def prepare_data(self) -> None:
        if self.starter is not None:
            ensure_starter(self.starter)

    def load_processing(self) -> None:
        """Tokenizers and transforms, without the data."""
        raise NotImplementedError

    def longest_batch(self, size: int) -> TextPairBatch | ImageTextBatch:
        """A batch of ``size`` samples that takes as much memory as any."""
        raise NotImplementedError

    @property
    def position(self) -> int:
        """Samples of the endless order that are trained so far, over all ranks."""
        # Lightning asks an endless loader for its first batch before it has restored the step of a checkpoint.
        trained = self.trainer.global_step * self.global_batch_size if self.trainer is not None else 0
        return max(trained, self._restored)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {
            "epoch": self.trainer.current_epoch,
            "position": self.position,
            "global_batch_size": self.global_batch_size,
            "epoch_samples": self.epoch_samples,
            "fingerprint": self.train_set.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key in ("global_batch_size", "epoch_samples"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"the checkpoint was made with data.{key}={state_dict[key]}, this run has {getattr(self, key)}: "
                    "steps and epochs would count other samples. Resume with the old value, or start a new run"
                )
        if state_dict["fingerprint"] != self.train_set.fingerprint and not self.accept_other_data:
            raise ValueError(
                "the checkpoint was made on other data: the contents of its shards, their order, the weights of "
                "the sources, data.mode or data.seed differ from this run's. Resume with the data of the first start, "
                "start a new run, or pass resume_force=true to go on at the same place of another order"
            )
        self._restored = state_dict["position"]

    def _planned(self, sources: Sequence[Mapping[str, Any]], decoder: Decoder[Any]) -> PairDataset[Any]:
        return PairDataset(sources=sources, plan_seed=self.seed, decoder=decoder, cache=self.cache)

    def _for_training(
        self, sources: Sequence[Mapping[str, Any]], decoder: Decoder[Any]
    ) -> PairDataset[Any] | StreamedPairs[Any]:
        if self.mode != STREAMING:
            return self._planned(sources, decoder)
        rank, ranks = distributed.rank(), distributed.world_size()
        if rank == 0:
            print(PROMISE)
        first, last = own_places(self.global_batch_size, rank, ranks)
        return StreamedPairs(
            sources=sources,
            seed=self.seed,
            decoder=decoder,
            batch_size=last - first,
            rank=rank,
            allow_pipe=self.allow_pipe,
            cache=self.cache,
        )

    def _cache(
        self,
        name: str,
        width: int,
        fingerprint: Callable[[], Mapping[str, str]],
        entries: Callable[[ShardReader, int], Sequence[int]],
    ) -> None:
        """Take a frozen tower's vectors from the sidecars of that name, and fill those if asked to."""
        if self.embeddings is None or isinstance(self.train_set, StreamedPairs):
            return
        reader, fill = self.train_set.reader, self.embeddings == FILL
        if not fill:
            if reader.remote and self.embeddings_dir is None:
                return
            paths = [sidecar_path(shard, name, self.embeddings_dir) for shard in reader.shards]
            found = sum(path.exists() for path in paths)
            if not found:
                return
            if distributed.rank() == 0:
                print(f"cached embeddings ({name}): of {found} of {len(paths)} shards")
        self.train_set.embeddings = EmbeddingStore(
            reader.shards,
            reader.digests,
            name=name,
            fingerprint=fingerprint(),
            width=width,
            directory=self.embeddings_dir,
            entries=partial(entries, reader) if fill else None,
        )

    def keep(self, rows: Sequence[tuple[int, int]], vectors: Tensor) -> Tensor:
        """Vectors (N, W) as the cache holds them; with data.embeddings=fill it does from now on.

        ``rows`` are those of :class:`~altclip_train.types.CachedVectors`.
        """
        rounded = vectors.to(getattr(torch, self.embeddings_dtype))
        store = None if isinstance(self.train_set, StreamedPairs) else self.train_set.embeddings
        if store is not None and self.embeddings == FILL:
            values = rounded.cpu().numpy()
            by_shard: dict[int, list[int]] = {}
            for place, (shard, row) in enumerate(rows):
                if row >= 0:
                    by_shard.setdefault(shard, []).append(place)
            for shard, places in by_shard.items():
                store.write(shard, [rows[place][1] for place in places], values[places])
        return rounded.float()

    def train_dataloader(self) -> TrainLoader:
        if self.trainer is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: a step trains exactly "
                "data.global_batch_size samples, and the contrastive loss is that of the whole batch; set the batch "
                "size instead and leave accumulate_grad_batches at 1"
            )
        options: dict[str, Any] = {
            "position": lambda: self.position,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "multiprocessing_context": "forkserver" if self.num_workers > 0 else None,
        }
        if isinstance(self.train_set, StreamedPairs):
            if self.trainer is not None and self.trainer.max_steps < 0:
                raise ValueError(f"data.mode={STREAMING} has no end: set trainer.max_steps")
            return TrainLoader(self.train_set, seek=self.train_set.seek, batch_size=None, **options)
        sampler = PlannedBatchSampler(
            plan=self.train_set.plan,
            global_batch_size=self.global_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            epoch_samples=self.epoch_samples,
        )
        return PlannedLoader(self.train_set, sampler=sampler, **options)

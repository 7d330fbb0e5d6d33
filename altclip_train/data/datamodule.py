"""Loaders of both stages: planned order, one shared position, exact resume.

The data position is counted from trained steps, never from fetched batches, so a prefetched batch is not
lost on resume; it is the same on every rank and does not mention ranks or workers.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from altclip_train import distributed
from altclip_train.data.cache import ShardCache
from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ENGLISH, Decoder, ImageTextDecoder, TextPairDecoder
from altclip_train.data.embeddings import (
    IMAGE,
    EmbeddingStore,
    caption_entries,
    picture_entries,
    sidecar_path,
    teacher_name,
)
from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch, own_places
from altclip_train.data.shards import ShardReader
from altclip_train.data.sidecars import DTYPES
from altclip_train.data.starter import ensure_starter
from altclip_train.data.streaming import PROMISE, StreamedPairs
from altclip_train.models import CLIPTextModel
from altclip_train.models.altclip import DualEncoder
from altclip_train.models.fingerprint import image_fingerprint, text_fingerprint
from altclip_train.processing import (
    Augmentation,
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
    load_tokenizer,
)

READ, FILL = "read", "fill"
STREAMING = "streaming"
MODES = ("indexed", STREAMING)


class TrainLoader(DataLoader):
    """Each pass starts at the position that the datamodule knows, after ``seek`` was told of it.

    Lightning warns about loaders that cannot tell their state; this one's lives in the datamodule, since
    Lightning saves a loader's state only after it fetched a batch ahead.
    """

    def __init__(
        self, dataset: Dataset[Any], *, seek: Callable[[int], None], position: Callable[[], int], **options: Any
    ):
        self._seek, self._position = seek, position
        self.seconds_waited = 0.0  # for batches, in total
        super().__init__(dataset, collate_fn=already_a_batch, **options)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that this runs when the first batch is asked for: Lightning asks for the iterator
        # before it has restored the step of a checkpoint.
        self._seek(self._position())
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: see the class."""


class PlannedLoader(TrainLoader):
    """Batches of planned positions, to the end of the epoch in which a pass starts."""

    def __init__(self, dataset: Dataset[Any], *, sampler: PlannedBatchSampler, **options: Any):
        super().__init__(dataset, seek=sampler.seek, batch_sampler=sampler, **options)


@dataclass(kw_only=True, eq=False)
class _TrainingData(L.LightningDataModule):
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
    _restored: int = field(init=False, default=0)  # position of the checkpoint that the run goes on from

    def __post_init__(self) -> None:
        super().__init__()
        if self.global_batch_size < 1:
            raise ValueError(f"data.global_batch_size={self.global_batch_size}: expected at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction}: it is a fraction, from 0 to 1")
        self._check_mode()
        if self.num_workers > 0:
            # Loader processes come from a server that takes seconds to import the command: let it begin now.
            forkserver.ensure_running()
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
        if state_dict["fingerprint"] != self.train_set.fingerprint:
            raise ValueError(
                "the checkpoint was made on other data: the contents of its shards, their order, the weights of "
                "the sources, data.mode or data.seed differ from this run's. Resume with the data of the first start, "
                "or start a new run"
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


@dataclass(kw_only=True, eq=False)
class TextPairData(_TrainingData):
    """Parallel text for stage one.

    Args:
        parallel_texts: sources, each ``{urls, weight, languages}``.
        val_texts: sources of held-out parallel text; empty switches validation off.
        clip: CLIP directory, for the teacher's tokenizer.
        student: XLM-R directory, for the student's tokenizer; None takes the starter data's.
        languages: languages to draw from beside English; None takes all that an entry has.
        max_length: tokens of a text, special tokens included, for student and teacher.
        normalize_full_width: turn full-width letters, digits and punctuation into ASCII.
        starter: root of the starter data, built when it is not there; None for other data.
        max_bad_fraction: share of samples that may be unusable before the run stops.
        cache_dir: directory for copies of remote shards, and ``cache_bytes`` how much of it they may take.
        mode: "indexed" has all that docs/data.md promises; "streaming" is for shards without an index. ``allow_pipe``
            lets its urls be shell commands, ``pipe:COMMAND``.
        embeddings: "read" takes the teacher's vectors from the sidecars that lie beside the shards, or in
            ``embeddings_dir``, and computes the others; "fill" also puts those there, as ``embeddings_dtype``; None
            computes all.
    """

    parallel_texts: Sequence[Mapping[str, Any]]
    val_texts: Sequence[Mapping[str, Any]]
    clip: str
    student: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_languages(self.languages, self.parallel_texts, self.starter)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        self.load_processing()
        decoder = TextPairDecoder(
            student_tokenizer=self.tokenizer,
            teacher_tokenizer=self.teacher_tokenizer,
            max_length=self.max_length,
            languages=self.languages,
            normalize_full_width=self.normalize_full_width,
        )
        self.train_set = self._for_training(self.parallel_texts, decoder)
        self.val_set = self._planned(self.val_texts, decoder) if self.val_texts else None

    def load_processing(self) -> None:
        """The tokenizers, without the data."""
        self.teacher_tokenizer = load_tokenizer(self.clip)
        self.tokenizer = load_tokenizer(_student_directory(self.student, self.starter))
        self.tokenizer.model_max_length = self.max_length  # what the trained model was made for, wherever it goes

    def cache_vectors_of(self, teacher: CLIPTextModel) -> None:
        """Let batches come with what the cache holds of this teacher's vectors, instead of the texts."""
        settings: dict[str, Any] = {"language": ENGLISH, "normalize_full_width": self.normalize_full_width}
        fingerprint = partial(
            text_fingerprint,
            teacher,
            tokenizer=self.teacher_tokenizer.fingerprint,
            max_length=self.max_length,
            dtype=self.embeddings_dtype,
            **settings,
        )
        self._cache(teacher_name(ENGLISH), teacher.output_width, fingerprint, partial(caption_entries, **settings))

    def val_dataloader(self) -> DataLoader | list[Any]:
        if self.val_set is None:
            return []
        batch = max(1, self.global_batch_size // distributed.world_size())
        own = range(distributed.rank(), self.val_set.plan.epoch_samples, distributed.world_size())
        batches = [list(own[i : i + batch]) for i in range(0, len(own), batch)]
        return DataLoader(self.val_set, batch_sampler=batches, collate_fn=already_a_batch)

    def check_text_towers(self, *, student: Any, teacher: Any) -> None:
        """Raise ValueError when a tokenizer or data.max_length does not fit its tower."""
        _check_text_tower(self.tokenizer, student, "student", self.max_length)
        _check_text_tower(self.teacher_tokenizer, teacher, "teacher", self.max_length)


@dataclass(kw_only=True, eq=False)
class ImageTextData(_TrainingData):
    """Image-text pairs for stage two.

    Args:
        image_texts: sources, each ``{urls, weight, languages}``.
        model: model directory whose tokenizer and image transform are used.
        tokenizer_directory: tokenizer, and ``image_size`` the side of a square picture, where there is no model
            directory yet.
        languages: caption languages to draw from; None takes all that a sample has.
        language_weights: how often each language is drawn where a sample has several, 1 for one not named.
        augment: fields of :class:`~altclip_train.processing.Augmentation`; None trains on the deterministic
            evaluation transform.
        draft_jpeg: decode a large JPEG at a half, quarter or eighth of its size, but not below what the transform
            needs: faster, with slightly other pixels than in evaluation and in cached embeddings.
        embeddings: as in :class:`TextPairData`, of image features where the image tower is locked; not with
            ``augment``, which makes another picture at each visit.
        max_length, normalize_full_width, starter, max_bad_fraction, cache_dir, mode: as in :class:`TextPairData`.
    """

    image_texts: Sequence[Mapping[str, Any]]
    model: str | None
    tokenizer_directory: str | None
    image_size: int | None
    language_weights: dict[str, float] | None
    augment: dict[str, Any] | None
    draft_jpeg: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_languages(self.languages, self.image_texts, self.starter)

    def load_processing(self) -> None:
        """Tokenizer and evaluation transform, without the data."""
        tokenizer = self.tokenizer_directory or self.model
        if tokenizer is None:
            raise ValueError("data.tokenizer_directory and data.model are both null: give the directory of a tokenizer")
        self.tokenizer = load_tokenizer(tokenizer)
        self.tokenizer.model_max_length = self.max_length
        if self.model is not None:
            self.image_transform = ImageTransform.from_pretrained(self.model)
        elif self.image_size is not None:
            self.image_transform = ImageTransform(size=self.image_size, crop_size=self.image_size)
        else:
            raise ValueError("data.image_size and data.model are both null: give the side of the pictures")

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        self.load_processing()
        decoder = ImageTextDecoder(
            tokenizer=self.tokenizer,
            image_transform=self.image_transform,
            augmentation=Augmentation(**self.augment) if self.augment is not None else None,
            draft=self.image_transform.resized_size if self.draft_jpeg else None,
            languages=self.languages,
            language_weights=self.language_weights,
            max_length=self.max_length,
            normalize_full_width=self.normalize_full_width,
        )
        self.train_set = self._for_training(self.image_texts, decoder)

    def cache_vectors_of(self, model: DualEncoder) -> None:
        """Let batches come with what the cache holds of this model's image features, instead of the pictures."""
        if self.augment is not None:
            if self.embeddings == FILL:
                warnings.warn(f"data.augment is on, so data.embeddings={FILL} keeps no image features", stacklevel=2)
            return
        fingerprint = partial(
            image_fingerprint,
            model,
            transform=self.image_transform.to_dict(),
            draft=self.draft_jpeg,
            dtype=self.embeddings_dtype,
        )
        self._cache(IMAGE, model.config.projection_dim, fingerprint, picture_entries)

    def check_towers(self, config: Any) -> None:
        """Raise ValueError when tokenizer or picture size do not fit the towers."""
        _check_text_tower(self.tokenizer, config.text_config, "text", self.max_length)
        if self.image_transform.crop_size != config.vision_config.image_size:
            raise ValueError(
                f"pictures are {self.image_transform.crop_size} pixels wide, but the image tower takes "
                f"{config.vision_config.image_size}: set data.image_size={config.vision_config.image_size}"
            )


def _student_directory(student: str | None, starter: str | None) -> Path:
    if student is not None:
        return Path(student)
    if starter is not None:
        return Path(starter) / "tokenizer"
    raise ValueError("student=null and data.starter=null: give student=DIR, a directory with a sentencepiece model")


def _check_languages(languages: list[str] | None, sources: Sequence[Any], starter: str | None) -> None:
    """Own data must name their languages, or a metadata key such as "id" would be taken for one."""
    unnamed = [s for s in sources if not (isinstance(s, Mapping) and s.get("languages"))]
    if languages is None and starter is None and unnamed:
        raise ValueError("data.languages=null: name the languages of your data, such as data.languages=[en,zh]")


def _check_text_tower(tokenizer: XLMRTokenizer | CLIPTokenizer, config: Any, tower: str, max_length: int) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the {tower} tower has {config.vocab_size} embeddings, but its tokenizer has {tokenizer.vocab_size} "
            f"entries: set the tower's vocab_size to {tokenizer.vocab_size}, or use the tokenizer it was made with"
        )
    if max_length > config.max_tokens:
        raise ValueError(
            f"data.max_length={max_length}, but the {tower} tower reads at most {config.max_tokens} tokens: "
            "lower data.max_length"
        )

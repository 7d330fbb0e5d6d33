"""Loaders of both stages: planned order, one shared position, exact resume.

The data position is counted from trained steps, never from fetched batches, so a prefetched batch is not
lost on resume; it is the same on every rank and does not mention ranks or workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from altclip_train import distributed
from altclip_train.data.cache import ShardCache
from altclip_train.data.dataset import ImageTextDataset, PairDataset, TextPairDataset
from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch
from altclip_train.data.sources import Source
from altclip_train.data.starter import ensure_starter
from altclip_train.processing import (
    Augmentation,
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
    load_tokenizer,
)


class PlannedLoader(DataLoader):
    """Each pass starts at the position that the datamodule knows and goes to the end of that epoch.

    Lightning warns about loaders that cannot tell their state; this one's lives in the datamodule, since
    Lightning saves a loader's state only after it fetched a batch ahead.
    """

    def __init__(
        self,
        dataset: PairDataset,
        *,
        sampler: PlannedBatchSampler,
        position: Callable[[], int],
        **options: Any,
    ):
        self._planned_sampler, self._position = sampler, position
        self.seconds_waited = 0.0  # for batches, in total
        super().__init__(dataset, batch_sampler=sampler, collate_fn=already_a_batch, **options)

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that this runs when the first batch is asked for: Lightning asks for the iterator
        # before it has restored the step of a checkpoint.
        self._planned_sampler.seek(self._position())
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


@dataclass(kw_only=True, eq=False)
class _PlannedDataModule(L.LightningDataModule):
    """What the two datamodules share: the planned loader and its position in the endless order."""

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
    train_set: PairDataset = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()
        if self.global_batch_size < 1:
            raise ValueError(f"data.global_batch_size={self.global_batch_size}: expected at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction={self.max_bad_fraction}: it is a fraction, from 0 to 1")
        if self.num_workers > 0:
            # Loader processes come from a server that takes seconds to import the command: let it begin now.
            forkserver.ensure_running()
        self.cache = ShardCache(self.cache_dir, self.cache_bytes)

    def prepare_data(self) -> None:
        if self.starter is not None:
            ensure_starter(self.starter)

    @property
    def position(self) -> int:
        """Samples of the endless order that are trained so far, over all ranks."""
        return self.trainer.global_step * self.global_batch_size if self.trainer is not None else 0

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
                "the sources or data.seed differ from this run's. Resume with the data of the first start, or start "
                "a new run"
            )

    def train_dataloader(self) -> PlannedLoader:
        if self.trainer is not None and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: a step trains exactly "
                "data.global_batch_size samples, and the contrastive loss is that of the whole batch; set the batch "
                "size instead and leave accumulate_grad_batches at 1"
            )
        sampler = PlannedBatchSampler(
            plan=self.train_set.plan,
            global_batch_size=self.global_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            epoch_samples=self.epoch_samples,
        )
        return PlannedLoader(
            self.train_set,
            sampler=sampler,
            position=lambda: self.position,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            multiprocessing_context="forkserver" if self.num_workers > 0 else None,
        )


@dataclass(kw_only=True, eq=False)
class TextPairData(_PlannedDataModule):
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
        self.train_set = self._dataset(self.parallel_texts)
        self.val_set = self._dataset(self.val_texts) if self.val_texts else None

    def load_processing(self) -> None:
        """The tokenizers, without the data."""
        self.teacher_tokenizer = load_tokenizer(self.clip)
        self.tokenizer = load_tokenizer(_student_directory(self.student, self.starter))

    def _dataset(self, sources: Sequence[Mapping[str, Any]]) -> TextPairDataset:
        return TextPairDataset(
            sources=[Source.from_config(source) for source in sources],
            plan_seed=self.seed,
            student_tokenizer=self.tokenizer,
            teacher_tokenizer=self.teacher_tokenizer,
            max_length=self.max_length,
            languages=self.languages,
            normalize_full_width=self.normalize_full_width,
            cache=self.cache,
        )

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
class ImageTextData(_PlannedDataModule):
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
        max_length, normalize_full_width, starter, max_bad_fraction, cache_dir: as in :class:`TextPairData`.
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
        if self.model is not None:
            self.image_transform = ImageTransform.from_pretrained(self.model)
        elif self.image_size is not None:
            self.image_transform = ImageTransform(size=self.image_size, crop_size=self.image_size)
        else:
            raise ValueError("data.image_size and data.model are both null: give the side of the pictures")

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 - Lightning's signature
        self.load_processing()
        self.train_set = ImageTextDataset(
            sources=[Source.from_config(source) for source in self.image_texts],
            plan_seed=self.seed,
            tokenizer=self.tokenizer,
            image_transform=self.image_transform,
            augmentation=Augmentation(**self.augment) if self.augment is not None else None,
            draft=self.image_transform.resized_size if self.draft_jpeg else None,
            languages=self.languages,
            language_weights=self.language_weights,
            max_length=self.max_length,
            normalize_full_width=self.normalize_full_width,
            cache=self.cache,
        )

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

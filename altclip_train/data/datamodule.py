"""The data of both stages: what each reads, with which tokenizers and transforms, and what must fit its towers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from altclip_train import distributed
from altclip_train.data.decoders import ENGLISH, ImageTextDecoder, TextPairDecoder
from altclip_train.data.embeddings import IMAGE, caption_entries, picture_entries, teacher_name
from altclip_train.data.sampler import already_a_batch
from altclip_train.data.training_data import FILL, TrainingData
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
from altclip_train.types import ImageTextBatch, TextPairBatch


@dataclass(kw_only=True, eq=False)
class TextPairData(TrainingData):
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
        own_seed = torch.Generator()  # a validation leaves the random numbers of the training as they are
        return DataLoader(self.val_set, batch_sampler=batches, collate_fn=already_a_batch, generator=own_seed)

    def longest_batch(self, size: int) -> TextPairBatch:
        """``size`` entries whose texts are as long as they may be: what takes most memory."""
        texts = ["a " * self.max_length] * size
        return TextPairBatch(
            student=self.tokenizer.pack(2 * texts, self.max_length),
            teacher=self.teacher_tokenizer.pack(texts, self.max_length),
            languages=[ENGLISH] * size,
            keys=[""] * size,
        )

    def check_text_towers(self, *, student: Any, teacher: Any) -> None:
        """Raise ValueError when a tokenizer or data.max_length does not fit its tower."""
        _check_text_tower(self.tokenizer, student, "student", self.max_length)
        _check_text_tower(self.teacher_tokenizer, teacher, "teacher", self.max_length)


@dataclass(kw_only=True, eq=False)
class ImageTextData(TrainingData):
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

    def on_after_batch_transfer(self, batch: ImageTextBatch, dataloader_idx: int) -> ImageTextBatch:  # noqa: ARG002
        """The batch with its pictures normalised, where they are: Lightning calls this when that is the device."""
        if batch.pixel_values is None:
            return batch
        return batch._replace(pixel_values=self.image_transform.normalize(batch.pixel_values))

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

    def longest_batch(self, size: int) -> ImageTextBatch:
        """``size`` pairs whose texts are as long as they may be: what takes most memory."""
        side = self.image_transform.crop_size
        return ImageTextBatch(
            pixel_values=torch.zeros(size, 3, side, side),
            text=self.tokenizer.pack(["a " * self.max_length] * size, self.max_length),
            caption_ids=torch.arange(size),
            languages=[ENGLISH] * size,
            keys=[""] * size,
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

"""Retrieval benchmarks: any layout with pictures and captions to recall in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from altclip_train.data.samples import normalize_language
from altclip_train.data.urls import Shard
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.examples import retrieval_examples
from altclip_train.evaluation.readers.captions import (
    AnnotationFiles,
    CaptionedPictures,
    holds_chinese_clip,
    read_annotated,
    read_chinese_clip,
)
from altclip_train.evaluation.readers.clip_benchmark import ShardPictures, holds_shards
from altclip_train.evaluation.readers.pictures import Pictures, texts_sha256
from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.evaluation.retrieval import retrieval_chance, retrieval_outcome
from altclip_train.files import contents

if TYPE_CHECKING:
    from altclip_train.evaluation.encoder import FeatureEncoder


class RetrievalBenchmark(Benchmark):
    """Texts find their picture and pictures one of their texts; every caption is a query.

    Args:
        captions: annotation file, or one for each language, where ``root`` is no layout that is known.
        pictures: folder of the pictures that annotation files name; None looks in ``root``.
    """

    kind = "retrieval"

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str = "test",
        name: str = "retrieval",
        captions: str | Path | Mapping[str, str] | None = None,
        pictures: str | Path | None = None,
        starter: str | Path | None = None,
        protocol: str | None = None,
        expect_counts: bool = True,
    ) -> None:
        super().__init__(
            root=root,
            language=language,
            split=split,
            name=name,
            starter=starter,
            protocol=protocol,
            expect_counts=expect_counts,
        )
        self.annotations = captions
        self.picture_folder = None if pictures is None else Path(pictures).expanduser()
        self.captions: dict[str, list[str]] = {}
        self.text_to_image: dict[str, torch.Tensor] = {}  # (M,)
        self._sha256: dict[str, str] = {}

    def counts(self, language: str) -> dict[str, int]:
        owners = self.text_to_image[language]
        return {"images": len(owners.unique()), "texts": len(owners)}

    def _read(self, root: Shard) -> Pictures:
        pictures, captions = self._find(root)
        for language, by_image in captions.items():
            self.captions[language] = [caption for texts in by_image for caption in texts]
            self.text_to_image[language] = torch.tensor([image for image, texts in enumerate(by_image) for _ in texts])
            self._sha256[language] = texts_sha256(pictures.sha256, *("\n".join(texts) for texts in by_image))
        return pictures

    def _find(self, root: Shard) -> CaptionedPictures:
        if self.annotations is None and holds_shards(root, self.split):
            shards = ShardPictures(root, self.split, benchmark=self.name)
            return CaptionedPictures(shards, shards.captions(self.languages))
        if isinstance(root, Path) and self.annotations is None and holds_chinese_clip(root, self.split):
            if len(self.languages) > 1:
                raise ValueError(f"{root} is in one language, but eval.{self.name}.language is {self.languages}")
            return read_chinese_clip(root, self.split, self.languages[0])
        if not isinstance(root, Path):
            raise ValueError(
                f"eval.{self.name}: {root} is remote: only shards are read from afar, not annotation files"
            )
        folders = [self.picture_folder] if self.picture_folder else [root / name for name in self.known.pictures]
        files = {language: self._annotation_files(root, language) for language in self.languages}
        return read_annotated(files, folders, split=self.split, first=self.protocols[self.languages[0]].first_captions)

    def _annotation_files(self, root: Path, language: str) -> AnnotationFiles:
        if isinstance(self.annotations, Mapping):
            codes = {normalize_language(code): file for code, file in self.annotations.items()}
            if language not in codes:
                raise ValueError(f"eval.{self.name}.captions has no {language!r}, it has {', '.join(self.annotations)}")
            return _given(codes[language])
        if self.annotations is not None:
            return _given(self.annotations)
        candidates = self.protocols[language].annotations
        for files in candidates:
            if (found := files.found(root, language)) is not None:
                return found
        wanted = "; ".join([f"{self.split}/nshards.txt", f"{self.split}_imgs.tsv", *map(str, candidates)])
        raise FileNotFoundError(
            f"{self.name}: {root} has nothing to read in {language!r}: no {wanted}. "
            f"It holds {contents(root)}{self._help()}"
        )

    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult:
        text_to_image = self.text_to_image[language]
        text_features = encoder.encode_texts(self.captions[language])  # (M, D)
        return BenchmarkResult.of(
            retrieval_outcome(image_features, text_features, text_to_image),
            benchmark=self.name,
            language=language,
            protocol=self.result_protocol(language),
            description=self.description(language, "R@K = any positive among the best K; every caption is a query"),
            counts=self.counts(language),
            data_sha256=self._sha256[language],
            chance=retrieval_chance(len(image_features), text_to_image),
            pictures=self.picture_names(),
            texts=self.captions[language],
            examples=retrieval_examples(image_features, text_features, text_to_image),
        )


def _given(file: str | Path) -> AnnotationFiles:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} with captions")
    return AnnotationFiles(captions=(str(path),))

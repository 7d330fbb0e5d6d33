"""Zero-shot benchmarks: any layout with labelled pictures, class names and templates to accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from altclip_train.data.urls import Shard
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.known_benchmarks import PROMPT_DIGESTS
from altclip_train.evaluation.protocols import KnownBenchmark, Protocol
from altclip_train.evaluation.readers.clip_benchmark import ShardPictures, holds_shards, read_language_file
from altclip_train.evaluation.readers.image_folders import LabelledPictures, read_class_folders
from altclip_train.evaluation.readers.pictures import Pictures, texts_sha256
from altclip_train.evaluation.readers.prompts import PromptFiles, Prompts
from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.evaluation.zero_shot import (
    build_classifier,
    multi_label_chance,
    multi_label_outcome,
    zero_shot_chance,
    zero_shot_outcome,
)

if TYPE_CHECKING:
    from altclip_train.evaluation.encoder import FeatureEncoder


class ZeroShotBenchmark(Benchmark):
    """Pictures are given the class whose prompts fit best; those that show several classes rank all of them (mAP).

    Args:
        prompts: files, folders or wheels with the class names and templates of a known benchmark; the cache folder
            ``~/.cache/altclip_train/prompts`` is looked in too.
    """

    kind = "zero_shot"

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str = "test",
        name: str = "zero_shot",
        prompts: str | Path | Sequence[str] | None = None,
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
        places = [] if prompts is None else [prompts] if isinstance(prompts, str | Path) else prompts
        self.prompt_places = list(places)
        self.prompts: dict[str, Prompts] = {}
        # (N,), -1 for pictures of none of the language's classes; or (N, C) bool
        self.labels: dict[str, torch.Tensor] = {}
        self._more_differences: dict[str, list[str]] = {}
        self._sha256: dict[str, str] = {}

    def counts(self, language: str) -> dict[str, int]:
        return {"images": len(self._known(language)), "classes": len(self.prompts[language].class_names)}

    def _known(self, language: str) -> torch.Tensor:
        """Indices of the pictures that show a class of the language; with labels for each class, of all."""
        labels = self.labels[language]
        return torch.arange(len(labels)) if labels.ndim == 2 else (labels >= 0).nonzero().flatten()

    def more_differences(self, language: str) -> list[str]:
        return self._more_differences[language]

    def _read(self, root: Shard) -> Pictures:
        if self.known.class_folders is None:
            return self._read_folder(root)
        files = {language: PromptFiles(self.prompt_places, PROMPT_DIGESTS) for language in self.languages}
        # What is missing of these is said before thousands of pictures are read.
        names = class_folder_names(self.known, files[self.languages[0]])
        found_prompts = {
            language: prompts_and_classes(self.known, self.protocols[language], language, found)
            for language, found in files.items()
        }
        labelled = self._labelled(root, names)
        for language, (prompts, classes) in found_prompts.items():
            labels = torch.tensor(labelled.labels)
            if classes is not None:
                places = torch.full((len(names),), -1).scatter(0, torch.tensor(classes), torch.arange(len(classes)))
                labels = places[labels]
            self._keep(language, prompts, labels, labelled.pictures)
            changed = [f"another file {name} than the protocol's" for name in files[language].changed]
            self._more_differences[language] = changed + _without_pictures(names, labelled.labels)
        return labelled.pictures

    def _labelled(self, root: Shard, names: Sequence[str]) -> LabelledPictures:
        if holds_shards(root, self.split):
            shards = ShardPictures(root, self.split, benchmark=self.name)
            return LabelledPictures(shards, shards.labels(len(names)))
        assert isinstance(root, Path)
        return read_class_folders(root, self.known.pictures, names)

    def _read_folder(self, root: Shard) -> Pictures:
        """Class names and templates beside the pictures."""
        prompts = {
            language: Prompts(
                read_language_file(root, "classnames", language),
                read_language_file(root, "zeroshot_classification_templates", language),
            )
            for language in self.languages
        }
        counts = {language: len(found.class_names) for language, found in prompts.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{root}: the languages differ in their number of class names: {counts}")
        pictures = ShardPictures(root, self.split, benchmark=self.name)
        read_labels = pictures.targets if pictures.multi_label else pictures.labels
        labels = torch.as_tensor(read_labels(max(counts.values())))
        for language, found in prompts.items():
            self._keep(language, found, labels, pictures)
            self._more_differences[language] = []
        return pictures

    def _keep(self, language: str, prompts: Prompts, labels: torch.Tensor, pictures: Pictures) -> None:
        texts = (str(labels.tolist()), "\n".join(prompts.class_names), "\n".join(prompts.templates))
        self.prompts[language], self.labels[language] = prompts, labels
        self._sha256[language] = texts_sha256(pictures.sha256, *texts)

    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult:
        class_names, templates = self.prompts[language]
        classifier = build_classifier(encoder.encode_texts, class_names, templates)  # (C, D)
        labels = self.labels[language]
        notes = [f"mean of normalised prompt features over {len(templates)} templates"]
        if repeated := len(class_names) - len(set(class_names)):
            notes.append(f"{repeated} class names are repeated, their classes cannot be told apart")
        known = self._known(language)
        pictures = self.picture_names()
        several = labels.ndim == 2
        outcome = multi_label_outcome if several else zero_shot_outcome
        return BenchmarkResult.of(
            outcome(image_features[known], classifier, labels[known]),
            benchmark=self.name,
            language=language,
            protocol=self.result_protocol(language),
            description=self.description(language, *notes),
            counts=self.counts(language),
            data_sha256=self._sha256[language],
            chance=multi_label_chance(labels) if several else zero_shot_chance(len(class_names)),
            pictures=[pictures[index] for index in known.tolist()],
            texts=class_names,
        )


def _without_pictures(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    missing = sorted(set(range(len(names))) - set(labels))
    return [f"no pictures of {len(missing):,} classes, such as {names[missing[0]]}"] if missing else []


def class_folder_names(known: KnownBenchmark, files: PromptFiles) -> list[str]:
    """Names of the class folders in the order of their labels, which is sorted for synsets."""
    if isinstance(known.class_folders, int):
        return [str(number) for number in range(known.class_folders)]
    assert known.class_folders is not None
    return sorted(files.read(known.class_folders))


def prompts_and_classes(
    known: KnownBenchmark, protocol: Protocol, language: str, files: PromptFiles
) -> tuple[Prompts, list[int] | None]:
    """Prompts of a language, and the class labels that its names are of; None: of all, one by one."""
    source = protocol.prompts[language]
    class_names = files.read(source.class_names)
    templates = [template.replace(source.placeholder, "{c}") for template in files.read(source.templates)]
    if known.subset_of is not None:
        everything = files.read(known.subset_of)
        if len(class_names) != len(everything):
            raise ValueError(f"{source.class_names.file} has {len(class_names):,} names, expected {len(everything):,}")
        assert known.class_folders is not None
        chosen = set(class_folder_names(known, files))
        class_names = [name for name, folder in zip(class_names, everything, strict=True) if folder in chosen]
    classes = None if source.classes is None else files.read(source.classes)
    return Prompts(class_names, templates), classes

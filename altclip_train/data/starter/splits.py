"""Samples and shards of every split of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from altclip_train.data.starter.captions import describe, describe_one
from altclip_train.data.starter.catalogue import Catalogue
from altclip_train.data.starter.concepts import LANGUAGES
from altclip_train.data.starter.pictures import Painter, Sprites
from altclip_train.data.starter.scenes import Pair, draw_concepts, paint_scene, paint_single, pairs_of
from altclip_train.data.starter.settings import StarterSettings
from altclip_train.data.starter.templates import ZERO_SHOT_TEMPLATES

SAMPLES_PER_SHARD = 5000
ZERO_SHOT = ("starter_zero_shot", "starter_zero_shot_unseen_drawing", "starter_zero_shot_unseen_concept")


@dataclass(frozen=True)
class Shard:
    """Samples [start, stop) of a split, written to one file by one process."""

    split: str
    file: Path
    start: int
    stop: int


class SampleMaker:
    """Makes any sample of any split of pictures, in any order and in any process."""

    def __init__(
        self,
        settings: StarterSettings,
        catalogue: Catalogue,
        sprites: Sprites,
        evaluation: dict[str, list[tuple[int, ...]]],
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.painter = Painter(sprites, size=settings.size)
        self.evaluation = evaluation
        self.taken = taken_pairs(evaluation)
        trained = catalogue.drawings[: catalogue.trained]
        self.trained_drawings = [(label, row) for label, rows in enumerate(trained) for row in rows]

    def sample(self, split: str, index: int) -> dict[str, str | bytes]:
        """The members of one sample, with its key."""
        rng = self.settings.stream(split, index)
        if split.startswith("eval/starter_retrieval"):
            return {"__key__": f"s{index:07d}", **self._retrieval(rng, self.evaluation[split][index])}
        if split.startswith("eval/"):
            label, row = self._labelled_drawing(split, index, rng)
            picture, _ = paint_single(rng, self.painter, row)
            return {"__key__": f"s{index:07d}", "jpg": picture, "cls": str(label).encode()}
        if split == "image_texts/singles/train":
            label, row = self.trained_drawings[index % len(self.trained_drawings)]
            picture, background = paint_single(rng, self.painter, row)
            captions = describe_one(rng, self.catalogue.concepts[label], background)
            return {"__key__": f"single{index:07d}", "jpg": picture, "json": by_language(captions)}
        chosen = draw_concepts(rng, 1000, self.catalogue.trained, (0.1, 0.45, 0.45), self.taken)
        picture, scene = paint_scene(rng, self.painter, self.catalogue, chosen)
        return {"__key__": f"scene{index:07d}", "jpg": picture, "json": by_language(describe(rng, scene))}

    def _retrieval(self, rng: np.random.Generator, chosen: tuple[int, ...]) -> dict[str, bytes]:
        picture, scene = paint_scene(rng, self.painter, self.catalogue, chosen)
        captions = describe(rng, scene)
        texts = {
            "txt" if language == "en" else f"{language}.txt": "\n".join(entry[language] for entry in captions)
            for language in LANGUAGES
        }
        return {"jpg": picture, **{name: text.encode() for name, text in texts.items()}}

    def _labelled_drawing(self, split: str, index: int, rng: np.random.Generator) -> tuple[int, int]:
        """(label, row of the drawing) of a zero-shot sample: labels go round, drawings are drawn."""
        catalogue = self.catalogue
        if "unseen_drawing" in split:
            labels = sorted(catalogue.held_out)
            label = labels[index % len(labels)]
            return label, catalogue.held_out[label]
        unseen = "unseen_concept" in split
        first, count = (
            (catalogue.trained, len(catalogue.concepts) - catalogue.trained) if unseen else (0, catalogue.trained)
        )
        rows = catalogue.drawings[first + index % count]
        return index % count, rows[rng.integers(len(rows))]


def by_language(captions: list[dict[str, str]]) -> bytes:
    """Captions as the JSON of an image-text sample: a list per language."""
    lists = {language: [entry[language] for entry in captions] for language in LANGUAGES}
    return json.dumps(lists, ensure_ascii=False).encode()


def taken_pairs(evaluation: dict[str, list[tuple[int, ...]]]) -> frozenset[Pair]:
    """Pairs of concepts that meet in a scene of the evaluation."""
    return frozenset(pair for scenes in evaluation.values() for chosen in scenes for pair in pairs_of(chosen))


def split_counts(settings: StarterSettings, catalogue: Catalogue) -> dict[str, int]:
    """Samples of each split of pictures."""
    return {
        "image_texts/singles/train": settings.singles,
        "image_texts/scenes/train": settings.scenes,
        "eval/starter_zero_shot/test": 2 * settings.concepts,
        "eval/starter_zero_shot/val": settings.concepts,
        "eval/starter_retrieval/test": settings.retrieval_test,
        "eval/starter_retrieval/val": settings.retrieval_val,
        "eval/starter_zero_shot_unseen_drawing/test": 4 * len(catalogue.held_out),
        "eval/starter_zero_shot_unseen_concept/test": 5 * settings.unseen_concepts,
    }


def plan_shards(root: Path, counts: dict[str, int]) -> list[Shard]:
    """Files of every split: six digits for training, CLIP_benchmark's plain numbers for evaluation."""
    shards = []
    for split, count in counts.items():
        name = "{}.tar" if split.startswith("eval/") else "{:06d}.tar"
        for number, start in enumerate(range(0, count, SAMPLES_PER_SHARD)):
            stop = min(start + SAMPLES_PER_SHARD, count)
            shards.append(Shard(split, root / split / name.format(number), start, stop))
    return shards


def write_tar(file: Path, samples: Iterator[dict[str, str | bytes]]) -> None:
    """Write samples with fixed times and owners, so that equal samples give equal bytes."""
    from webdataset.writer import TarWriter

    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(file, "wb") as stream,
        TarWriter(stream, encoder=False, mtime=0, user="altclip", group="altclip") as tar,
    ):
        for sample in samples:
            tar.write(sample)


def write_shard(maker: SampleMaker, shard: Shard) -> int:
    """Write one shard of pictures; returns its samples."""
    write_tar(shard.file, (maker.sample(shard.split, index) for index in range(shard.start, shard.stop)))
    return shard.stop - shard.start


def write_benchmark_files(root: Path, catalogue: Catalogue, shards: list[Shard]) -> None:
    """Write the text files that CLIP_benchmark's layout wants beside the shards."""
    for split in {shard.split for shard in shards if shard.split.startswith("eval/")}:
        count = sum(shard.split == split for shard in shards)
        (root / split / "nshards.txt").write_text(f"{count}\n")
    (root / "eval/starter_retrieval/dataset_type.txt").write_text("retrieval\n")
    for name in ZERO_SHOT:
        unseen = name.endswith("unseen_concept")
        concepts = catalogue.concepts[catalogue.trained :] if unseen else catalogue.concepts[: catalogue.trained]
        directory = root / "eval" / name
        (directory / "dataset_type.txt").write_text("classification\n")
        for language in LANGUAGES:
            suffix = "" if language == "en" else f".{language}"
            names = [concept.names[language] for concept in concepts]
            templates = ZERO_SHOT_TEMPLATES[language]
            for kind, lines in (("classnames", names), ("zeroshot_classification_templates", templates)):
                text = "".join(f"{line}\n" for line in lines)
                (directory / f"{kind}{suffix}.txt").write_text(text, encoding="utf-8")

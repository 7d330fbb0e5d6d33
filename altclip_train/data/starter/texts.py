"""Parallel texts: names, sentences about one thing and about scenes, aligned over the languages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from altclip_train.data.starter.captions import enumerate_things, pick, relation_row, say
from altclip_train.data.starter.catalogue import Catalogue
from altclip_train.data.starter.concepts import LANGUAGES, Concept, named_emoji
from altclip_train.data.starter.scenes import Pair, draw_concepts, spoken_scene
from altclip_train.data.starter.settings import StarterSettings
from altclip_train.data.starter.splits import SAMPLES_PER_SHARD, write_tar
from altclip_train.data.starter.templates import BARE, COLOUR_NAMES, LABEL, ONE, ONE_ON_COLOUR, THREE, TWO

FOREIGN_SHARE = 0.1  # scene sentences with a concept that is never drawn in training


def other_concepts(catalogue: Catalogue) -> list[Concept]:
    """Every named emoji outside the catalogue that shares no name with it or with an earlier one."""
    taken = {(language, concept.names[language]) for concept in catalogue.concepts for language in LANGUAGES}
    symbols = {concept.symbol for concept in catalogue.concepts}
    others: list[Concept] = []
    for concept in named_emoji():
        names = set(concept.names.items())
        if concept.symbol not in symbols and not names & taken:
            others.append(concept)
            taken |= names
    return others


def parallel_texts(
    rng: np.random.Generator,
    catalogue: Catalogue,
    others: list[Concept],
    *,
    train: int,
    validation: int,
    taken: frozenset[Pair],
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(train, validation) entries without repeats, none of which names a pair of concepts in `taken`.

    Train has every name, alone and labelled, and sentences about one thing and about scenes; validation has
    scene sentences only.
    """
    colours = list(COLOUR_NAMES)
    named = (*catalogue.concepts, *others)
    entries = [say(row, {"a": concept}) for concept in named for row in (*BARE, *LABEL)]
    for concept in catalogue.concepts:
        entries += [say(row, {"a": concept}) for row in ONE]
        entries += [say(row, {"a": concept}, colours[rng.integers(len(colours))]) for row in ONE_ON_COLOUR]
    seen: set[tuple[str, ...]] = set()
    entries = [entry for entry in entries if is_new(entry, seen)]
    scenes: list[dict[str, str]] = []
    while len(entries) + len(scenes) < train + validation or len(scenes) < validation:
        entry = scene_sentence(rng, catalogue, taken)
        if is_new(entry, seen):
            scenes.append(entry)
    rng.shuffle(train_entries := entries + scenes[validation:])
    return train_entries, scenes[:validation]


def is_new(entry: dict[str, str], seen: set[tuple[str, ...]]) -> bool:
    """Whether the entry was not seen before; notes it."""
    texts = tuple(entry.values())
    if texts in seen:
        return False
    seen.add(texts)
    return True


def scene_sentence(rng: np.random.Generator, catalogue: Catalogue, taken: frozenset[Pair]) -> dict[str, str]:
    """A sentence about two or three concepts, sometimes one that is never drawn in training."""
    indices = list(draw_concepts(rng, 1000, catalogue.trained, (0.0, 0.6, 0.4), taken))
    unseen = len(catalogue.concepts) - catalogue.trained
    if unseen and rng.random() < FOREIGN_SHARE:
        indices[rng.integers(len(indices))] = catalogue.trained + int(rng.integers(unseen))
    scene = spoken_scene(rng, catalogue.concepts, tuple(indices))
    kind = rng.random()
    if kind < 0.65:
        return relation_row(rng, scene)
    if kind < 0.85:
        return say(pick(rng, TWO if len(indices) == 2 else THREE), dict(zip("abd", scene.concepts, strict=False)))
    coloured = type(scene)(scene.concepts, "", "", list(COLOUR_NAMES)[rng.integers(len(COLOUR_NAMES))])
    return enumerate_things(rng, coloured, True)


def write_parallel_texts(
    root: Path, settings: StarterSettings, catalogue: Catalogue, taken: frozenset[Pair]
) -> dict[str, int]:
    """Write parallel_texts/ and both tokenizers; returns the entries per split."""
    from altclip_train.processing.tokenizers import XLMRTokenizer
    from altclip_train.processing.training import train_clip_bpe, train_sentencepiece

    rng = settings.stream("parallel_texts")
    train, validation = parallel_texts(
        rng,
        catalogue,
        other_concepts(catalogue),
        train=settings.texts,
        validation=settings.validation_texts,
        taken=taken,
    )
    for split, entries in (("train", train), ("val", validation)):
        for number, start in enumerate(range(0, len(entries), SAMPLES_PER_SHARD)):
            chunk = entries[start : start + SAMPLES_PER_SHARD]
            samples = (
                {"__key__": f"text{start + row:07d}", "json": json.dumps(entry, ensure_ascii=False).encode()}
                for row, entry in enumerate(chunk)
            )
            write_tar(root / "parallel_texts" / split / f"{number:06d}.tar", samples)
    model_file = root / "trained.model"
    train_sentencepiece((text for entry in train for text in entry.values()), model_file, settings.vocab_size)
    XLMRTokenizer(model_file).save_pretrained(root / "tokenizer")
    model_file.unlink()
    clip = train_clip_bpe((entry["en"] for entry in train), settings.clip_vocab_size)
    clip.save_pretrained(root / "clip_tokenizer")
    return {"parallel_texts/train": len(train), "parallel_texts/val": len(validation)}

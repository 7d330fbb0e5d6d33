"""Caption sentences in five languages, made from templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from altclip_train.data.starter.concepts import LANGUAGES, Concept
from altclip_train.data.starter.templates import (
    COLOUR_NAMES,
    ONE,
    ONE_ON_COLOUR,
    OPPOSITE,
    RELATION,
    THIRD,
    THREE,
    THREE_ON_COLOUR,
    TWO,
    TWO_ON_COLOUR,
    Row,
    Rows,
)

NO_ARTICLE = frozenset(
    {
        "bacon",
        "badminton",
        "baguette bread",
        "bowling",
        "bread",
        "broccoli",
        "bubble tea",
        "butter",
        "camping",
        "candy",
        "canned food",
        "chains",
        "cooked rice",
        "coral",
        "curry rice",
        "custard",
        "dna",
        "fondue",
        "french fries",
        "fried shrimp",
        "garlic",
        "ginger root",
        "ice",
        "ice cream",
        "ice hockey",
        "lacrosse",
        "luggage",
        "mate",
        "meat on bone",
        "money with wings",
        "mount fuji",
        "nail polish",
        "oden",
        "ping pong",
        "popcorn",
        "sake",
        "salt",
        "santa claus",
        "shaved ice",
        "soap",
        "soft ice cream",
        "spaghetti",
        "sushi",
        "thread",
        "tokyo tower",
        "wood",
        "yarn",
    }
)
DEFINITE = frozenset({"statue of liberty", "kaaba", "sun"})
SINGULAR_IN_S = frozenset({"skull and crossbones", "rhinoceros"})
VOWEL_SOUNDS = ("a", "e", "i", "o", "u", "x-ray", "8")
CONSONANT_SOUNDS = ("unicorn", "one-piece", "european", "uniform", "ewe")
FRENCH_VOWELS = tuple("aàâeéèêiîoôuœ")
H_ASPIRE = ("hache", "hamburger", "hamster", "haricot", "harpe", "haut", "hérisson", "hibou")
H_ASPIRE += ("hockey", "homard", "hors", "hot", "hutte", "handball")


@cache
def english_noun(name: str) -> str:
    """The name with "a", "an", "the" or no article."""
    lower = name.lower()
    if lower in DEFINITE:
        return f"the {name}"
    last = lower.split(" with ")[0].split(" of ")[0]
    plural = last.endswith("s") and not last.endswith(("ss", "us")) and lower not in SINGULAR_IN_S
    if lower in NO_ARTICLE or plural:
        return name
    vowel = lower.startswith(VOWEL_SOUNDS) and not lower.startswith(CONSONANT_SOUNDS)
    return f"an {name}" if vowel else f"a {name}"


@cache
def french_of(name: str) -> str:
    """The name after "de", shortened before a vowel and a silent h."""
    lower = name.lower()
    mute_h = lower.startswith("h") and not lower.startswith(H_ASPIRE)
    shortened = lower.startswith((*FRENCH_VOWELS, "yeux")) or mute_h
    return f"d’{name}" if shortened else f"de {name}"


@cache
def spanish_and(name: str) -> str:
    """The name after "y", which becomes "e" before the sound i."""
    lower = name.lower()
    return f"e {name}" if lower.startswith(("i", "hi")) and not lower.startswith("hie") else f"y {name}"


# Pictures whose background is named. Few, so that pairs cannot be told apart by colour alone.
COLOUR_SHARE = 0.25


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one to three concepts, how they are placed, the background."""

    concepts: tuple[Concept, ...]
    relation: str  # where the first is, seen from the second; "" with one concept
    third: str  # where the third is, seen from the first two; "" without a third
    background: str


def words(slots: dict[str, Concept], background: str, column: int) -> dict[str, str]:
    """What fills the placeholders of a template in the language of a column."""
    language = LANGUAGES[column]
    colour = COLOUR_NAMES[background][column] if background else ""
    filled = {"c": colour, "an_c": english_noun(colour)}
    for slot, concept in slots.items():
        name = concept.names[language]
        filled[slot] = english_noun(name) if language == "en" else name
        filled[f"{slot}0"] = name
        if language == "fr":
            filled[f"de_{slot}"] = french_of(name)
        if language == "es":
            filled[f"y_{slot}"] = spanish_and(name)
    return filled


def say(row: Row, slots: dict[str, Concept], background: str = "") -> dict[str, str]:
    """One template in every language."""
    return {
        language: row[column].format_map(words(slots, background, column)) for column, language in enumerate(LANGUAGES)
    }


def pick(rng: np.random.Generator, rows: Rows) -> Row:
    """One of the templates."""
    return rows[rng.integers(len(rows))]


def describe_one(rng: np.random.Generator, concept: Concept, background: str) -> list[dict[str, str]]:
    """Three or four different captions of one thing; the last may name the background."""
    slots = {"a": concept}
    said = [say(ONE[row], slots) for row in rng.permutation(len(ONE))[: int(rng.integers(3, 5))]]
    if rng.random() < COLOUR_SHARE:
        said[-1] = say(pick(rng, ONE_ON_COLOUR), slots, background)
    return said


def relation_row(rng: np.random.Generator, scene: Scene) -> dict[str, str]:
    """Where the first two things of the scene are, with the third where there is one."""
    first, second = scene.concepts[:2]
    relation = scene.relation
    if rng.integers(2):
        first, second, relation = second, first, OPPOSITE[relation]
    said = say(pick(rng, RELATION[relation]), {"a": first, "b": second})
    if not scene.third:
        return said
    third = say(THIRD[scene.third], {"d": scene.concepts[2]})
    return {language: said[language] + third[language] for language in LANGUAGES}


def pair_relation(rng: np.random.Generator, scene: Scene) -> dict[str, str]:
    """Where the first two things are, without the third."""
    return relation_row(rng, Scene(scene.concepts[:2], scene.relation, "", scene.background))


def enumerate_things(rng: np.random.Generator, scene: Scene, coloured: bool) -> dict[str, str]:
    """All things of the scene in any order, without places."""
    order = rng.permutation(len(scene.concepts))
    slots = dict(zip("abd", (scene.concepts[index] for index in order), strict=False))
    plain, on_colour = (THREE, THREE_ON_COLOUR) if len(slots) == 3 else (TWO, TWO_ON_COLOUR)
    return say(pick(rng, on_colour if coloured else plain), slots, scene.background)


def name_two(rng: np.random.Generator, scene: Scene) -> dict[str, str]:
    """Two of the things of the scene."""
    chosen = rng.permutation(len(scene.concepts))[:2]
    two = Scene(tuple(scene.concepts[index] for index in chosen), "", "", scene.background)
    return enumerate_things(rng, two, False)


def describe(rng: np.random.Generator, scene: Scene) -> list[dict[str, str]]:
    """Three to five different captions; the first says everything, later ones may leave things out."""
    if len(scene.concepts) == 1:
        return describe_one(rng, scene.concepts[0], scene.background)
    wanted = int(rng.integers(3, 6))
    captions = [relation_row(rng, scene), enumerate_things(rng, scene, rng.random() < COLOUR_SHARE)]
    for _ in range(20):
        if len(captions) == wanted:
            break
        kind = rng.integers(4)
        if kind == 0:
            caption = relation_row(rng, scene)
        elif kind == 1:
            caption = pair_relation(rng, scene)
        elif kind == 2:
            caption = enumerate_things(rng, scene, False)
        else:
            caption = name_two(rng, scene)
        if caption not in captions:
            captions.append(caption)
    return captions

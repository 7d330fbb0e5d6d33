"""Which concepts meet in a scene and where they are placed, so that evaluation scenes stay unseen."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from altclip_train.data.starter.captions import Scene
from altclip_train.data.starter.catalogue import Catalogue
from altclip_train.data.starter.concepts import Concept
from altclip_train.data.starter.pictures import Painter, Placement

RELATIONS = ("left", "right", "above", "below")
MAX_DEGREES = 12.0
Pair = tuple[int, int]  # two concept indices, the smaller first


def draw_concepts(
    rng: np.random.Generator,
    count: int,
    trained: int,
    size_weights: tuple[float, float, float],
    taken: frozenset[Pair],
) -> tuple[int, ...]:
    """One to three different concepts, no two of them a pair in `taken`."""
    size = 1 + int(rng.choice(3, p=size_weights))
    while True:
        chosen = tuple(int(index) for index in rng.integers(trained, size=size))
        if len(set(chosen)) == size and not any(pair in taken for pair in pairs_of(chosen)):
            return chosen
        count -= 1
        if count == 0:
            raise ValueError(f"too few concepts ({trained}) for scenes that share no pair with the evaluation")


def pairs_of(concepts: tuple[int, ...]) -> list[Pair]:
    """Every two of the concepts, sorted."""
    return [(min(pair), max(pair)) for pair in combinations(concepts, 2)]


def evaluation_scenes(rng: np.random.Generator, scenes: int, trained: int) -> list[tuple[int, ...]]:
    """Concepts of scenes of two or three, such that no pair of concepts meets in two scenes."""
    taken: set[Pair] = set()
    chosen: list[tuple[int, ...]] = []
    for _ in range(scenes):
        chosen.append(draw_concepts(rng, 1000, trained, (0.0, 0.5, 0.5), frozenset(taken)))
        taken.update(pairs_of(chosen[-1]))
    return chosen


def arrange(rng: np.random.Generator, painter: Painter, drawings: list[int]) -> tuple[list[Placement], str, str]:
    """Placements of one to three drawings, the relation of the first two and the place of the third."""
    if len(drawings) == 1:
        return [place_alone(rng, painter, drawings[0], smallest=0.5, largest=0.75)], "", ""
    relation = RELATIONS[rng.integers(4)]
    horizontal = relation in ("left", "right")
    third = ""
    along = [0.255, 0.745] if relation in ("left", "above") else [0.745, 0.255]
    across = rng.uniform(0.42, 0.58) + np.array([-0.5, 0.5]) * rng.uniform(-0.16, 0.16)
    if len(drawings) == 3:
        third = RELATIONS[2 + rng.integers(2)] if horizontal else RELATIONS[rng.integers(2)]
        side = 0.255 if third in ("left", "above") else 0.745
        across = np.array([1 - side, 1 - side, side])
        along.append(rng.uniform(0.255, 0.745))
    placements: list[Placement] = []
    for drawing, forward, sideways in zip(drawings, along, across, strict=True):
        x, y = (forward, sideways) if horizontal else (sideways, forward)
        x, y = np.array([x, y]) + rng.uniform(-0.015, 0.015, size=2)
        box = rng.uniform(0.41, 0.48) * painter.size
        placements.append(Placement(drawing, float(x) * painter.size, float(y) * painter.size, float(box), turn(rng)))
    return placements, relation, third


def place_alone(
    rng: np.random.Generator, painter: Painter, drawing: int, *, smallest: float, largest: float
) -> Placement:
    """One drawing of a random size and turn anywhere inside the picture."""
    degrees = turn(rng)
    box = rng.uniform(smallest, largest) * painter.size
    width, height = np.array(painter.extent(drawing, degrees)) / max(painter.extent(drawing, degrees)) * box
    x = painter.size / 2 + rng.uniform(-0.5, 0.5) * (painter.size - width)
    y = painter.size / 2 + rng.uniform(-0.5, 0.5) * (painter.size - height)
    return Placement(drawing, float(x), float(y), float(box), degrees)


def turn(rng: np.random.Generator) -> float:
    """A turn in degrees."""
    return float(rng.uniform(-MAX_DEGREES, MAX_DEGREES))


def choose_drawings(rng: np.random.Generator, catalogue: Catalogue, concepts: tuple[int, ...]) -> list[int]:
    """One of the drawings that training may show, for each concept."""
    return [catalogue.drawings[index][rng.integers(len(catalogue.drawings[index]))] for index in concepts]


def paint_scene(
    rng: np.random.Generator, painter: Painter, catalogue: Catalogue, concepts: tuple[int, ...]
) -> tuple[bytes, Scene]:
    """A picture of the concepts and what it shows."""
    drawings = choose_drawings(rng, catalogue, concepts)
    placements, relation, third = arrange(rng, painter, drawings)
    background = painter.background(rng, drawings)
    picture = painter.paint(rng, background, placements)
    return picture, Scene(tuple(catalogue.concepts[index] for index in concepts), relation, third, background)


def paint_single(rng: np.random.Generator, painter: Painter, drawing: int) -> tuple[bytes, str]:
    """A picture of one drawing and the name of its background."""
    background = painter.background(rng, [drawing])
    placement = place_alone(rng, painter, drawing, smallest=0.7, largest=0.95)
    return painter.paint(rng, background, [placement]), background


def spoken_scene(
    rng: np.random.Generator, concepts: tuple[Concept, ...], indices: NDArray[np.int64] | tuple[int, ...]
) -> Scene:
    """A scene that is only told, never drawn."""
    relation = RELATIONS[rng.integers(4)]
    third = ""
    if len(indices) == 3:
        third = RELATIONS[2 + rng.integers(2)] if relation in ("left", "right") else RELATIONS[rng.integers(2)]
    return Scene(tuple(concepts[index] for index in indices), relation, third, "")

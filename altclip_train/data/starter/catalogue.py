"""The catalogue: which concepts and which of their drawings are trained on, and which are kept unseen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from altclip_train.data.starter.concepts import Concept, picturable_concepts
from altclip_train.data.starter.pictures import VENDORS, Sprites, Vendors, make_sprites
from altclip_train.data.starter.settings import StarterSettings


@dataclass(frozen=True)
class Catalogue:
    """Concepts and the rows of their drawings in `Sprites`.

    Concepts `[0, trained)` are trained, those from there to `len(concepts)` are unseen.
    """

    concepts: tuple[Concept, ...]
    trained: int
    drawings: tuple[tuple[int, ...], ...]  # per concept, rows that training may show (unseen: all it has)
    held_out: dict[int, int]  # trained concept -> row of the drawing that training never shows
    vendors: tuple[str, ...]  # per row


def make_catalogue(settings: StarterSettings) -> tuple[Catalogue, Sprites]:
    """Choose and render concepts; hold out concepts and drawings. Raises ValueError for too many."""
    available = picturable_concepts()
    wanted = settings.concepts + settings.unseen_concepts
    if wanted > len(available):
        raise ValueError(
            f"{settings.concepts} trained and {settings.unseen_concepts} unseen concepts were asked for, "
            f"but only {len(available)} emoji can be told apart: lower `concepts`"
        )
    rng = settings.stream("catalogue")
    chosen = rng.permutation(len(available))[:wanted]
    order = [*sorted(chosen[: settings.concepts]), *sorted(chosen[settings.concepts :])]
    concepts = tuple(available[index] for index in order)
    vendors = Vendors()
    images, owners, drawings = [], [], []
    for concept in concepts:
        rows = []
        for vendor in VENDORS:
            image = vendors.draw(concept, vendor)
            if image is not None:
                rows.append(len(images))
                images.append((image, vendor == "noto"))
                owners.append(vendor)
        drawings.append(rows)
    # a wholly new drawing needs two others to learn from
    complete = [index for index in range(settings.concepts) if len(drawings[index]) == len(VENDORS)]
    held_out = {}
    for turn, index in enumerate(sorted(rng.permutation(complete)[: settings.held_out_drawings].tolist())):
        held_out[index] = drawings[index].pop(turn % len(VENDORS))
    side = 6 * math.ceil(settings.size / 4)  # 1.5 times the picture; a multiple of 6 reduces by 2 and by 3
    catalogue = Catalogue(concepts, settings.concepts, tuple(map(tuple, drawings)), held_out, tuple(owners))
    return catalogue, make_sprites(images, side=side)

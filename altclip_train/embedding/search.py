"""`altclip search`: the nearest of what `altclip embed --output` wrote, exactly, without loading all of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from altclip_train.data.sidecars import differences
from altclip_train.embedding.features import read_members
from altclip_train.embedding.parts import chunks, part_file, read_ids
from altclip_train.embedding.tables import DESCRIPTION, Description
from altclip_train.embedding.towers import TEXTS, Towers

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 65_536


class Hit(NamedTuple):
    rank: int  # from 1
    score: float  # cosine similarity
    id: str


def search(
    index: str | Path,
    model: str | Path,
    query: str | None = None,
    *,
    image: str | Path | None = None,
    top: int = 10,
    device: str | torch.device = "cpu",
) -> list[Hit]:
    """The ``top`` entries of a directory of embeddings nearest to a text or a picture; of equal ones the first.

    The text tower may be another than that of the model which embedded pictures, as long as the image tower is
    the same. Raises ValueError when the index was made with other weights, tokenizer or transform.
    """
    if (query is None) == (image is None):
        raise ValueError("search for either a text or a picture")
    directory = Path(index)
    description = Description.read(directory)
    if description is None:
        raise FileNotFoundError(f"{directory} has no {DESCRIPTION}: give a directory that `altclip embed` wrote")
    made = description.fingerprint
    towers = Towers(model, device=device, max_length=int(made["max_length"]) if description.kind == TEXTS else 77)
    if wrong := differences(made, towers.fingerprint(description.kind, made["dtype"])):
        raise ValueError(f"{directory} was not embedded with {model}: {'; '.join(wrong)}")
    vector = _encode_picture(towers, Path(image)) if image is not None else towers.encode_texts([str(query)])[0]
    return nearest(directory, description, vector, top)


def nearest(directory: Path, description: Description, vector: np.ndarray, top: int) -> list[Hit]:
    """The ``top`` entries with the largest scalar product with ``vector`` (D,)."""
    if top < 1:
        raise ValueError(f"top={top}: expected at least 1")
    best: list[tuple[float, Path, int]] = []  # score, part, row in it; best first
    for file in _parts(directory, description):
        row = 0
        for features in chunks(file, ROWS_AT_ONCE):
            scores = features.astype(np.float32) @ vector  # (rows,)
            order = np.argsort(-scores, kind="stable")[:top].tolist()
            best += [(float(scores[place]), file, row + place) for place in order]
            best = sorted(best, key=lambda entry: -entry[0])[:top]  # stable: the earlier of equal ones stays first
            row += len(features)
    ids = {file: read_ids(file) for file in {file for _, file, _ in best}}
    return [Hit(rank, score, ids[file][row]) for rank, (score, file, row) in enumerate(best, start=1)]


def _parts(directory: Path, description: Description) -> list[Path]:
    if description.parts is not None:
        return [part_file(directory, number, description.file_format) for number in range(description.parts)]
    found = sorted(directory.glob(f"part-*.{description.file_format}"))
    logger.warning("%s is not complete: searching the %d parts that are there", directory, len(found))
    return found


def _encode_picture(towers: Towers, file: Path) -> np.ndarray:
    """(D,). Raises ValueError for a file that is no picture."""
    (found,) = towers.encode_pictures([read_members(lambda: {"jpg": file.read_bytes()})])
    if found.damaged:
        raise ValueError(f"{file}: {found.damaged[0]}")
    return found.features[0]

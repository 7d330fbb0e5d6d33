"""Pictures and texts of one space, embedded once, to be searched by either and classified by any labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from altclip_train.data.samples import BadSample, decode_image
from altclip_train.embedding.features import read_members
from altclip_train.embedding.search import nearest
from altclip_train.embedding.tables import (
    Description,
    Table,
    embed_pictures,
    embed_texts,
    local_shards,
    picture_inputs,
    pictures_of,
)
from altclip_train.embedding.tables import text_inputs as inputs_of_texts
from altclip_train.embedding.towers import IMAGES, TEXTS, Towers

REPEATED = 20  # times as many texts are looked at as are shown: shards hold many captions more than once


class Found(NamedTuple):
    score: float  # cosine similarity
    id: str


class Collection:
    """Pictures in folders and shards, and texts, with their features in ``cache``, where they are found again.

    ``texts`` are files of texts; None takes the captions of the local shards among the pictures.
    Raises FileNotFoundError and ValueError for what cannot be read.
    """

    def __init__(self, towers: Towers, pictures: Sequence[str], texts: Sequence[str] | None, cache: Path) -> None:
        self.towers = towers
        texts = local_shards(pictures) if texts is None else texts
        self.directory, self.description = _embedded(towers, IMAGES, pictures, cache)
        self.texts = _embedded(towers, TEXTS, texts, cache) if texts else None
        # As ids are kept: one a line.
        self._pictures = {" ".join(one.name.splitlines()): one.read for one in pictures_of(pictures)}

    def picture(self, name: str) -> Image.Image:
        """One of the collection. Raises BadSample where it has been damaged since."""
        members = read_members(self._pictures[name])
        if isinstance(members, BadSample):
            raise members
        return decode_image(members)

    def search(self, text: str, top: int) -> list[Found]:
        """The pictures nearest to a text, best first."""
        vector = self.towers.encode_texts([text])[0]
        return [Found(hit.score, hit.id) for hit in nearest(self.directory, self.description, vector, top)]

    def describe(self, picture: bytes, top: int) -> list[Found]:
        """The different texts nearest to a picture, best first. Raises BadSample for what is no picture."""
        assert self.texts is not None, "a collection without texts"
        hits = nearest(*self.texts, self._encode(picture), top * REPEATED)
        best = {hit.id: hit.score for hit in reversed(hits)}  # the first of equal texts stays
        return sorted((Found(score, text) for text, score in best.items()), reverse=True)[:top]

    def classify(self, picture: bytes, labels: Sequence[str]) -> dict[str, float]:
        """The probability of each label, as the model gives it. Raises BadSample for what is no picture."""
        scale = self.towers.model.logit_scale.detach().exp().item()
        logits = scale * self.towers.encode_texts(labels) @ self._encode(picture)  # (C,)
        weights = np.exp(logits - logits.max())
        return dict(zip(labels, (weights / weights.sum()).tolist(), strict=True))

    def _encode(self, picture: bytes) -> np.ndarray:
        """(D,)"""
        (found,) = self.towers.encode_pictures([{"jpg": picture}])
        if found.damaged:
            raise found.damaged[0]
        return found.features[0]


def _embedded(towers: Towers, kind: str, sources: Sequence[str], cache: Path) -> tuple[Path, Description]:
    """Features of these sources: those in the cache, or computed now. Changed sources have another place there."""
    inputs = picture_inputs(sources) if kind == IMAGES else inputs_of_texts(sources)
    key = json.dumps([kind, inputs, towers.fingerprint(kind, "float16")], sort_keys=True)
    directory = cache / hashlib.sha256(key.encode()).hexdigest()[:24]
    embed = embed_pictures if kind == IMAGES else embed_texts
    description = embed(towers, sources, Table(directory=directory))
    if not description.rows:
        raise ValueError(f"there is nothing sound to show in {', '.join(sources)}")
    return directory, description

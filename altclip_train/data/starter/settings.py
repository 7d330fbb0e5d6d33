"""How much starter data to build, and the random stream of each of its samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The second number of every sample's random stream (seed, split, index): never reuse one.
STREAMS = {
    "catalogue": 0,
    "evaluation_scenes": 1,
    "parallel_texts": 2,
    "image_texts/singles/train": 10,
    "image_texts/scenes/train": 11,
    "eval/starter_zero_shot/test": 20,
    "eval/starter_zero_shot/val": 21,
    "eval/starter_retrieval/test": 22,
    "eval/starter_retrieval/val": 23,
    "eval/starter_zero_shot_unseen_drawing/test": 24,
    "eval/starter_zero_shot_unseen_concept/test": 25,
}


@dataclass(frozen=True)
class StarterSettings:
    """How much to build. Counts are samples; `concepts` counts the trained ones."""

    size: int = 64
    concepts: int = 600
    unseen_concepts: int = 60
    held_out_drawings: int = 100
    singles: int = 30000
    scenes: int = 30000
    texts: int = 40000
    validation_texts: int = 1000
    retrieval_test: int = 1000
    retrieval_val: int = 500
    vocab_size: int = 8000
    clip_vocab_size: int = 4096
    seed: int = 0

    def stream(self, name: str, index: int = 0) -> np.random.Generator:
        """The random stream of one sample: it depends on nothing that other samples do."""
        return np.random.default_rng((self.seed, STREAMS[name], index))

"""Both towers of a model directory with their inputs: normalised features of texts and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from altclip_train.data.samples import BadSample
from altclip_train.embedding.features import Members, PictureFeatures, picture_features, text_features
from altclip_train.models import load_model
from altclip_train.models.fingerprint import image_fingerprint, text_fingerprint
from altclip_train.processing import AltCLIPProcessor

TEXTS, IMAGES = "texts", "images"


class Towers:
    """An AltCLIP or CLIP directory, read once. Texts are cut to ``max_length`` tokens."""

    def __init__(self, directory: str | Path, *, device: str | torch.device = "cpu", max_length: int = 77) -> None:
        self.model = load_model(directory).to(device)
        processor = AltCLIPProcessor.from_pretrained(directory)
        self.tokenizer, self.transform = processor.tokenizer, processor.image_processor.transform
        self.max_length = max_length

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    def fingerprint(self, kind: str, dtype: str) -> dict[str, str]:
        """Of features of one kind, `TEXTS` or `IMAGES`."""
        if kind == IMAGES:
            return image_fingerprint(self.model, transform=self.transform.to_dict(), draft=False, dtype=dtype)
        return text_fingerprint(
            self.model,
            tokenizer=self.tokenizer.fingerprint,
            max_length=self.max_length,
            language="any",
            normalize_full_width=False,
            dtype=dtype,
        )

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, of length 1."""
        model = self.model
        return _normalised(
            text_features(model.encode_text, self.tokenizer, texts, max_length=self.max_length, device=model.device)
        )

    def encode_pictures(self, pictures: Iterable[Members | BadSample]) -> Iterator[PictureFeatures]:
        """Features of length 1."""
        for found in picture_features(self.model.encode_image, self.transform, pictures, device=self.model.device):
            yield found._replace(features=_normalised(found.features))


def _normalised(features: np.ndarray) -> np.ndarray:
    """Raises ValueError for features that are not finite."""
    if not np.isfinite(features).all():
        raise ValueError("the model gives features that are not finite: its weights are damaged")
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

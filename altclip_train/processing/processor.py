"""AltCLIPProcessor: texts and pictures to model inputs, with the documented argument and output names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from altclip_train.processing.images import ImageTransform
from altclip_train.processing.tokenizers import CLIPTokenizer, XLMRTokenizer, load_tokenizer

Picture = Image.Image | np.ndarray


class ProcessorOutput(dict[str, Any]):
    """Model inputs by name, also as attributes: ``output.input_ids`` is ``output["input_ids"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here, only {sorted(self)}") from None

    def to(self, device: str | torch.device) -> ProcessorOutput:
        """The same inputs with every tensor on ``device``."""
        return ProcessorOutput(
            {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in self.items()}
        )


class AltCLIPProcessor:
    """Tokenizer and image transform of one model. Texts are cut to ``max_length`` tokens (77 in AltCLIP)."""

    def __init__(
        self,
        image_transform: ImageTransform,
        tokenizer: XLMRTokenizer | CLIPTokenizer,
        max_length: int = 77,
    ) -> None:
        self.image_transform = image_transform
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Picture | Sequence[Picture] | None = None,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> ProcessorOutput:
        """``input_ids`` and ``attention_mask`` (B, L) of texts, ``pixel_values`` (B, 3, R, R) of pictures.

        Args:
            padding: True or "longest" pads to the longest text, "max_length" to that, False not at all.
            truncation: whether longer texts are cut to ``max_length`` (the processor's own when None).
            return_tensors: "pt", "np", or None for lists (``pixel_values`` is then a list of arrays).

        Raises ValueError without text and images, for unknown options, and for ragged texts as tensors.
        """
        if text is None and images is None:
            raise ValueError("give text, images or both")
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt', 'np' or None")
        output = ProcessorOutput()
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            limit = self.max_length if max_length is None else max_length
            output.update(self._encode(texts, padding, truncation, limit, return_tensors))
        if images is not None:
            pictures = [images] if isinstance(images, Image.Image | np.ndarray) else list(images)
            pixels = [self.image_transform(_as_picture(picture)) for picture in pictures]
            output["pixel_values"] = torch.stack(pixels)  # (B, 3, R, R)
            if return_tensors != "pt":
                arrays = output["pixel_values"].numpy()
                output["pixel_values"] = arrays if return_tensors == "np" else list(arrays)
        return output

    def _encode(
        self,
        texts: list[str],
        padding: bool | str,
        truncation: bool,
        max_length: int,
        return_tensors: str | None,
    ) -> dict[str, Any]:
        ids = self.tokenizer.encode_batch(texts, max_length if truncation else 10**9)
        longest = max(map(len, ids), default=0)
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r}: expected True, False, 'longest' or 'max_length'")
        length = max(max_length, longest) if padding == "max_length" else longest
        if padding in (False, "do_not_pad"):
            mask = [[1] * len(one) for one in ids]
            if return_tensors is not None and any(len(one) != longest for one in ids):
                raise ValueError("texts of unequal length do not fit in one tensor: use padding=True")
        else:
            mask = [[1] * len(one) + [0] * (length - len(one)) for one in ids]
            ids = [one + [self.tokenizer.pad_id] * (length - len(one)) for one in ids]
        if return_tensors == "pt":
            return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}  # (B, L)
        if return_tensors == "np":
            return {"input_ids": np.array(ids), "attention_mask": np.array(mask)}  # (B, L)
        return {"input_ids": ids, "attention_mask": mask}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the tokenizer's files and preprocessor_config.json."""
        self.tokenizer.save_pretrained(directory, model_max_length=self.max_length)
        self.image_transform.save_pretrained(directory)

    @classmethod
    def from_pretrained(cls, directory: str | Path, max_length: int = 77) -> AltCLIPProcessor:
        """Read what :meth:`save_pretrained` or a published AltCLIP or CLIP directory holds.

        Raises FileNotFoundError naming what is missing.
        """
        return cls(ImageTransform.from_pretrained(directory), load_tokenizer(directory), max_length)


def _as_picture(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        kind = f"{picture.dtype} array {picture.shape}" if isinstance(picture, np.ndarray) else type(picture)
        raise ValueError(f"a picture must be a PIL image or a uint8 array (height, width, 3), got {kind}")
    return Image.fromarray(picture)

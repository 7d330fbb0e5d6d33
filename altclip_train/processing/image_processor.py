"""CLIPImageProcessor: pictures to pixel values with the documented names, around one ImageTransform."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from altclip_train.processing.images import ImageTransform
from altclip_train.processing.outputs import ProcessorOutput
from altclip_train.processing.pictures import Pictures, open_pictures


class CLIPImageProcessor:
    """The image side of a processor. ``transform`` does the work, and is what training and evaluation use."""

    model_input_names = ("pixel_values",)

    def __init__(self, transform: ImageTransform) -> None:
        self.transform = transform

    def __call__(
        self, images: Pictures, *, return_tensors: str | None = None, do_rescale: bool = True
    ) -> ProcessorOutput:
        """``pixel_values`` (B, 3, R, R) float32 as "pt" or "np", or a list of (3, R, R) arrays.

        ``do_rescale=False`` says that arrays hold floats in [0, 1]. Raises what `open_pictures` raises, and
        ValueError for an empty list.
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt', 'np' or None")
        pixels = [self.transform(picture) for picture in open_pictures(images, do_rescale=do_rescale)]
        if not pixels:
            raise ValueError("no pictures given: the list of images is empty")
        if return_tensors is None:
            return ProcessorOutput(pixel_values=[one.numpy() for one in pixels])
        batch = torch.stack(pixels)  # (B, 3, R, R)
        return ProcessorOutput(pixel_values=batch if return_tensors == "pt" else batch.numpy())

    preprocess = __call__

    @property
    def size(self) -> dict[str, int]:
        return self.transform.to_dict()["size"]

    @property
    def crop_size(self) -> dict[str, int]:
        return self.transform.to_dict()["crop_size"]

    @property
    def image_mean(self) -> list[float]:
        return list(self.transform.mean)

    @property
    def image_std(self) -> list[float]:
        return list(self.transform.std)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write preprocessor_config.json."""
        self.transform.save_pretrained(directory)

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **changes: Any) -> Self:
        """Read what a published directory or hub id holds; ``changes`` are `size` or `crop_size` to use instead."""
        return cls(ImageTransform.from_pretrained(path_or_id, **changes))

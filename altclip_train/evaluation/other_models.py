"""Models of `transformers` and open_clip as encoders, so that one run compares them with ours on the same pictures.

Both packages are optional: each is imported only when a checkpoint asks for it. Every model gets its own tokenizer,
text length and image transform, as its library would use them: they are a part of the model, and pictures may be
cropped differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.evaluation.encoder import batches_of_pixels
from altclip_train.files import read_json

if TYPE_CHECKING:
    from altclip_train.evaluation.encoder import Picture

LIBRARIES = ("transformers", "open_clip")
OURS = ("altclip", "clip")  # model_type of directories that need no other library
MAX_LENGTH = {"chinese_clip": 52, "siglip": 64, "siglip2": 64}  # tokens that these were trained with; others: 77
PADDED = ("siglip", "siglip2")  # trained on texts that are padded to the full length


class OtherEncoder:
    """A model of another library: functions from prepared batches to features."""

    def __init__(
        self,
        *,
        encode_pixels: Callable[[Tensor], Tensor],
        encode_texts: Callable[[list[str]], Tensor],
        transform: Callable[[Any], Tensor],
        batch_size: int,
    ) -> None:
        self._encode_pixels, self._encode_texts, self._transform = encode_pixels, encode_texts, transform
        self.batch_size = batch_size

    @torch.no_grad()
    def encode_images(self, images: Iterable[Picture], *, cache_key: str | None = None) -> Tensor:  # noqa: ARG002
        """Normalised float32 features (N, D) on the CPU, in order."""
        pixels = batches_of_pixels(images, self._pixels, self.batch_size)
        features = [F.normalize(self._encode_pixels(batch).float(), dim=-1).cpu() for batch in pixels]
        if not features:
            raise ValueError("no pictures to encode")
        return torch.cat(features)

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Normalised float32 features (N, D) on the CPU, in order. Texts of similar length share a batch."""
        if not texts:
            raise ValueError("no texts to encode")
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        found = [self._encode_texts([texts[i] for i in batch]).float().cpu() for batch in batches]
        features = F.normalize(torch.cat(found), dim=-1)
        result = torch.empty_like(features)
        result[torch.tensor(order)] = features
        return result

    def _pixels(self, picture: Picture) -> Tensor:
        image = picture() if callable(picture) else picture
        return self._transform(image.convert("RGB"))


def library_of(checkpoint: str) -> tuple[str | None, str]:
    """Which library a checkpoint is for, and what it is called there: `transformers:DIR`, `open_clip:DIR_OR_NAME`.

    Without a prefix a directory of a kind that this package does not read itself is one of `transformers`.
    """
    library, colon, name = checkpoint.partition(":")
    if colon and library in LIBRARIES:
        return library, name
    config = Path(checkpoint).expanduser() / "config.json"
    try:
        kind = read_json(config).get("model_type", "clip") if config.is_file() else "clip"
    except ValueError:  # damaged: whoever loads it says so
        kind = "clip"
    return (None if kind in OURS else "transformers"), checkpoint


def load_other(library: str, name: str, *, batch_size: int, device: str) -> OtherEncoder:
    """The encoder of a model of another library. Raises ModuleNotFoundError that says what to install."""
    load = {"transformers": _load_transformers, "open_clip": _load_open_clip}[library]
    package = {"transformers": "transformers", "open_clip": "open_clip_torch"}[library]
    try:
        return load(name, batch_size, device)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in (library, "torchvision"):
            raise
        raise ModuleNotFoundError(
            f"checkpoint={library}:{name} needs {error.name}, which is not installed: pip install {package}"
        ) from error


def _load_transformers(name: str, batch_size: int, device: str) -> OtherEncoder:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer  # pyright: ignore[reportMissingImports]

    directory = Path(name).expanduser()
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"checkpoint=transformers:{name} has no config.json; pass a model directory")
    model: Any = AutoModel.from_pretrained(directory).eval().to(device)
    # Its Pillow backend: the transform that published scores were made with, and no torchvision.
    processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    kind = model.config.model_type
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise ValueError(f"{directory} is a {kind}, which has no features of texts and pictures in one space")
    positions = getattr(model.config.text_config, "max_position_embeddings", 77)
    length = min(MAX_LENGTH.get(kind, 77), positions)

    def encode_texts(texts: list[str]) -> Tensor:
        padding = "max_length" if kind in PADDED else True
        ids = tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        names = ("input_ids", "attention_mask") if kind not in PADDED else ("input_ids",)
        return _features(model.get_text_features(**{key: ids[key].to(device) for key in names}))

    return OtherEncoder(
        encode_pixels=lambda pixels: _features(model.get_image_features(pixel_values=pixels.to(device))),
        encode_texts=encode_texts,
        transform=lambda image: processor(images=image, return_tensors="pt")["pixel_values"][0],
        batch_size=batch_size,
    )


def _features(output: Any) -> Tensor:
    """(B, D): version 5 wraps what version 4 returns."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _load_open_clip(name: str, batch_size: int, device: str) -> OtherEncoder:
    import open_clip  # pyright: ignore[reportMissingImports]

    # open_clip names a directory like this; anything else is a name that it knows, with its weights after a colon.
    directory = Path(name).expanduser()
    if directory.is_dir():
        architecture, weights = f"local-dir:{directory}", None
    else:
        architecture, _, weights = name.partition(":")
    model, transform = open_clip.create_model_from_pretrained(architecture, pretrained=weights or None, device=device)
    model.eval()
    tokenizer = open_clip.get_tokenizer(architecture)

    def encode_texts(texts: Sequence[str]) -> Tensor:
        return model.encode_text(tokenizer(list(texts)).to(device))

    return OtherEncoder(
        encode_pixels=lambda pixels: model.encode_image(pixels.to(device)),
        encode_texts=encode_texts,
        transform=transform,
        batch_size=batch_size,
    )

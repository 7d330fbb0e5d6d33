"""Features of any number of pictures and texts from a trained model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train import distributed
from altclip_train.types import PackedTokens

if TYPE_CHECKING:
    from PIL import Image

    from altclip_train.models import AltCLIPModel, CLIPModel
    from altclip_train.processing import AltCLIPProcessor

    Picture: TypeAlias = Image.Image | Callable[[], Image.Image]

T = TypeVar("T")


class FeatureEncoder(Protocol):
    """What a benchmark needs of a model. Any model that offers these two methods can be evaluated."""

    def encode_images(self, images: Iterable[Picture], *, cache_key: str | None = None) -> Tensor:
        """Normalised float32 features (N, D) on the CPU, in order; ``cache_key`` names this run of pictures."""
        ...

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Normalised float32 features (N, D) on the CPU, in order."""
        ...


class AcrossRanks:
    """An encoder whose work all ranks share: each encodes every W-th picture and text, and all get all features.

    Every rank calls it alike. What fails on one rank fails on all.
    """

    def __init__(self, encoder: FeatureEncoder) -> None:
        self.encoder = encoder

    def encode_images(self, images: Iterable[Picture], *, cache_key: str | None = None) -> Tensor:
        own = islice(images, distributed.rank(), None, distributed.world_size())
        return self._gathered(own, lambda share: self.encoder.encode_images(share, cache_key=cache_key))

    def encode_texts(self, texts: list[str]) -> Tensor:
        own = texts[distributed.rank() :: distributed.world_size()]
        return self._gathered(own, lambda share: self.encoder.encode_texts(list(share)))

    def _gathered(self, own: Iterable[T], encode: Callable[[Iterable[T]], Tensor]) -> Tensor:
        if distributed.world_size() == 1:
            return encode(own)

        def encode_share() -> Tensor | None:
            share = iter(own)
            first = next(share, None)  # there may be fewer than ranks
            return None if first is None else encode(chain([first], share))

        features = distributed.on_every_rank(encode_share)
        width = max(distributed.all_gather_objects(0 if features is None else features.shape[1]))
        if width == 0:
            raise ValueError("nothing to encode")
        device = distributed.collective_device()
        features = torch.empty(0, width, device=device) if features is None else features.to(device)
        counts = distributed.row_counts(len(features), device)
        gathered = distributed.all_gather_rows(features, counts).cpu()
        result = torch.empty_like(gathered)
        for place, part in enumerate(gathered.split(counts)):
            result[place :: len(counts)] = part
        return result


class Encoder:
    """The two towers of a model as functions from pictures and texts to normalised features.

    Args:
        batch_size: pictures or texts per forward pass.
        max_length: tokens that a text is cut to; AltCLIP's published results are all at 77.
        image_cache: keeps image features by ``cache_key``. Share one dictionary only between encoders whose
            image tower, image projection and image transform are the same.
    """

    def __init__(
        self,
        model: AltCLIPModel | CLIPModel,
        processor: AltCLIPProcessor,
        *,
        batch_size: int = 256,
        max_length: int = 77,
        image_cache: dict[str, Tensor] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.max_length = max_length
        self.image_cache = image_cache

    @torch.no_grad()
    def encode_images(self, images: Iterable[Picture], *, cache_key: str | None = None) -> Tensor:
        """Normalised float32 features (N, D) on the CPU, in order.

        A picture may be a function that returns it: the threads that transform pictures then decode it too,
        and few are in memory at a time. With a known ``cache_key`` the pictures are not looked at.
        """
        if self.image_cache is not None and cache_key in self.image_cache:
            return self.image_cache[cache_key]
        features: list[Tensor] = []
        parameter = next(self.model.parameters())
        with _evaluation_mode(self.model):
            for pixel_values in batches_of_pixels(images, self._pixels, self.batch_size):
                pixel_values = pixel_values.to(parameter.device, parameter.dtype)
                features.append(F.normalize(self.model.encode_image(pixel_values).float(), dim=-1).cpu())
        if not features:
            raise ValueError("no pictures to encode")
        result = torch.cat(features)
        if self.image_cache is not None and cache_key is not None:
            self.image_cache[cache_key] = result
        return result

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Normalised float32 features (N, D) on the CPU, in order. Texts of similar length share a batch."""
        if not texts:
            raise ValueError("no texts to encode")
        token_ids = self.processor.tokenizer.encode_batch(texts, self.max_length)
        # Longest first: a batch that does not fit into memory fails at once.
        order = sorted(range(len(texts)), key=lambda i: -len(token_ids[i]))
        device = next(self.model.parameters()).device
        features: list[Tensor] = []
        with _evaluation_mode(self.model):
            for start in range(0, len(order), self.batch_size):
                tokens = PackedTokens.from_lists([token_ids[i] for i in order[start : start + self.batch_size]])
                tokens = PackedTokens(
                    tokens.input_ids.to(device), tokens.cumulative_lengths.to(device), tokens.max_length
                )
                features.append(F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu())
        by_length = torch.cat(features)
        result = torch.empty_like(by_length)
        result[torch.tensor(order)] = by_length
        return result

    def _pixels(self, picture: Picture) -> Tensor:
        return self.processor.image_processor.transform(picture() if callable(picture) else picture)


def batches_of_pixels(
    images: Iterable[Picture], transform: Callable[[Picture], Tensor], batch_size: int
) -> Iterator[Tensor]:
    """Batches (B, 3, R, R); while the model works on one, threads prepare the next."""
    remaining = iter(images)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        ready: list[Future[Tensor]] = []
        while group := list(islice(remaining, batch_size)):
            upcoming = [pool.submit(transform, picture) for picture in group]
            if ready:
                yield torch.stack([future.result() for future in ready])
            ready = upcoming
        if ready:
            yield torch.stack([future.result() for future in ready])


@contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again: frozen parts of a training model stay frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

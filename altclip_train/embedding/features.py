"""Features of any number of texts and pictures, as they come: in batches of even size, damage told apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from altclip_train.data.samples import BadSample, decode_image
from altclip_train.processing import CLIPTokenizer, ImageTransform, XLMRTokenizer
from altclip_train.types import PackedTokens

TEXTS_AT_ONCE, PICTURES_AT_ONCE = 4096, 256
TOKENS_PER_BATCH = 16_384
Members: TypeAlias = Mapping[str, bytes]


class PictureFeatures(NamedTuple):
    """Of a run of pictures, numbered from 0 over all runs."""

    places: list[int]  # of the pictures that are sound
    features: np.ndarray  # (len(places), D) float32
    damaged: dict[int, BadSample]


@torch.inference_mode()
def text_features(
    encode: Callable[[PackedTokens], Tensor],
    tokenizer: CLIPTokenizer | XLMRTokenizer,
    texts: Sequence[str],
    *,
    max_length: int,
    device: torch.device,
) -> np.ndarray:
    """``encode`` of each text, (N, D) float32. Equal texts are encoded once, texts of similar length together."""
    distinct = list(dict.fromkeys(texts))
    token_ids = zip(tokenizer.encode_batch(distinct, max_length), distinct, strict=True)
    # Longest first: a batch that does not fit into memory fails at once.
    by_length = sorted(token_ids, key=lambda item: -len(item[0]))
    found = [encode(_to(batch, device)).float().cpu() for batch in _token_batches([ids for ids, _ in by_length])]
    rows = {text: row for row, (_, text) in enumerate(by_length)}
    return torch.cat(found)[[rows[text] for text in texts]].numpy()


@torch.inference_mode()
def picture_features(
    encode: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    pictures: Iterable[Members | BadSample],
    *,
    device: torch.device,
) -> Iterator[PictureFeatures]:
    """``encode`` of each picture that can be decoded; while it works on some, threads decode the next."""
    first = 0
    for group in _decoded(transform, pictures):
        pixels = {first + i: one for i, one in enumerate(group) if not isinstance(one, BadSample)}
        damaged = {first + i: one for i, one in enumerate(group) if isinstance(one, BadSample)}
        first += len(group)
        features = np.empty((0, 0), np.float32)
        if pixels:
            features = encode(torch.stack(list(pixels.values())).to(device)).float().cpu().numpy()
        yield PictureFeatures(list(pixels), features, damaged)


def _decoded(transform: ImageTransform, pictures: Iterable[Members | BadSample]) -> Iterator[list[Tensor | BadSample]]:
    remaining = iter(pictures)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        ready: list[Future[Tensor | BadSample]] = []
        # Read here and decoded there: what reads shards is not for threads.
        while group := list(islice(remaining, PICTURES_AT_ONCE)):
            coming = [pool.submit(_pixels, transform, members) for members in group]
            if ready:
                yield [future.result() for future in ready]
            ready = coming
        if ready:
            yield [future.result() for future in ready]


def _pixels(transform: ImageTransform, members: Members | BadSample) -> Tensor | BadSample:
    if isinstance(members, BadSample):
        return members
    try:
        return transform(decode_image(members))  # (3, R, R)
    except BadSample as error:
        return error


def read_members(read: Callable[[], Members]) -> Members | BadSample:
    """What ``read`` returns, or why it cannot be read."""
    try:
        return read()
    except OSError as error:
        return BadSample("unreadable", str(error))


def _token_batches(token_ids: Sequence[Sequence[int]]) -> Iterator[PackedTokens]:
    """Texts as they come, as many at once as `TOKENS_PER_BATCH` allow."""
    batch: list[Sequence[int]] = []
    tokens = 0
    for ids in token_ids:
        if batch and tokens + len(ids) > TOKENS_PER_BATCH:
            yield PackedTokens.from_lists(batch)
            batch, tokens = [], 0
        batch.append(ids)
        tokens += len(ids)
    yield PackedTokens.from_lists(batch)


def _to(tokens: PackedTokens, device: torch.device) -> PackedTokens:
    return PackedTokens(tokens.input_ids.to(device), tokens.cumulative_lengths.to(device), tokens.max_length)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.completed / task.elapsed:,.0f} {task.description}/s" if task.elapsed else "")


def progress_bar() -> Progress:
    """A bar on stderr with the number done per second; the description of its task is what it counts."""
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))

"""``altclip data bench``: what the training loader reaches on given shards, and which of its stages limits it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder, Packer, TextPairDecoder
from altclip_train.data.processes import available_cpus, start_loader_server
from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch
from altclip_train.data.samples import BadSample, decode_captions, decode_image, is_image_field
from altclip_train.data.sources import Source, language_code
from altclip_train.processing import CLIPTokenizer, ImageTransform, XLMRTokenizer, load_tokenizer

BATCH = 64


@dataclass
class Stages:
    """Seconds of the work on samples in one process, stage by stage."""

    samples: int = 0
    bytes: int = 0
    texts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)

    def timed(self, stage: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return work(*arguments, **options)
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


@dataclass
class LoaderRate:
    workers: int
    first_batch_seconds: float
    samples_per_second: float


def open_dataset(
    urls: Sequence[str],
    tokenizer: XLMRTokenizer | CLIPTokenizer,
    *,
    language: str | None,
    size: int,
    max_length: int,
) -> PairDataset[Any]:
    """The training dataset of ``urls``: image-text where their first sample has a picture, else parallel text."""
    sources = [Source(list(urls), languages=None if language is None else [language])]
    transform = ImageTransform(size=size, crop_size=size)
    image_text = ImageTextDecoder(tokenizer=tokenizer, image_transform=transform, max_length=max_length)
    pictures = PairDataset(sources=sources, plan_seed=0, decoder=image_text)
    shard = next(shard for shard, count in enumerate(pictures.reader.counts) if count)
    if any(map(is_image_field, pictures.reader.read(shard, 0))):
        return pictures
    text_pair = TextPairDecoder(student_tokenizer=tokenizer, teacher_tokenizer=tokenizer, max_length=max_length)
    return PairDataset(sources=sources, plan_seed=0, decoder=text_pair)


def measure_stages(dataset: PairDataset[Any], seconds: float) -> Stages:
    """Work on samples in the order of their files for ``seconds``, in this process; texts by the batch."""
    decoder, stages, texts = dataset.decoder, Stages(), list[str]()
    assert isinstance(decoder, ImageTextDecoder | TextPairDecoder)
    end = time.perf_counter() + seconds
    for shard, sample in ((shard, i) for shard, count in enumerate(dataset.reader.counts) for i in range(count)):
        try:
            members = stages.timed("read", dataset.reader.read, shard, sample)
            captions = stages.timed("captions", decode_captions, members, default_language="und")
            if isinstance(decoder, ImageTextDecoder):
                image = stages.timed("decode", decode_image, members)
                stages.timed("resize", decoder.image_transform.cropped, image)
        except (BadSample, OSError):
            continue
        stages.samples += 1
        stages.bytes += sum(map(len, members.values()))
        first = [found[0] for found in captions.values()]
        # A pair is tokenized for the student, and its English for the teacher too.
        texts += first[:1] if isinstance(decoder, ImageTextDecoder) else [*first[:2], first[0]]
        if stages.samples % BATCH == 0:
            stages.texts += len(texts)
            stages.timed("tokenize", _tokenizer(decoder).pack, texts, decoder.max_length)
            texts = []
            if time.perf_counter() > end:
                break
    if not stages.seconds.get("tokenize"):
        raise ValueError(f"fewer than {BATCH} samples can be used: too few to measure; `altclip data inspect` says why")
    return stages


def _tokenizer(decoder: ImageTextDecoder | TextPairDecoder) -> Packer:
    return decoder.tokenizer if isinstance(decoder, ImageTextDecoder) else decoder.student_tokenizer


def measure_loader(dataset: PairDataset[Any], workers: int, seconds: float) -> LoaderRate:
    """Batches of the training loader with ``workers`` processes, for ``seconds`` after the first batch."""
    sampler = PlannedBatchSampler(
        plan=dataset.plan, global_batch_size=min(BATCH, len(dataset)), rank=0, world_size=1, epoch_samples=None
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=already_a_batch,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
    )
    began = time.perf_counter()
    batches = _endless(loader)
    next(batches)
    first, samples = time.perf_counter(), 0
    while time.perf_counter() - first < seconds:
        next(batches)
        samples += min(BATCH, len(dataset))
    return LoaderRate(workers, first - began, samples / (time.perf_counter() - first))


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def print_bench(stages: Stages, rates: Sequence[LoaderRate], console: Console) -> None:
    total = sum(stages.seconds.values())
    table = Table("one process", "ms per sample", "share", "alone")
    for stage, spent in stages.seconds.items():
        alone = f"{stages.samples / spent:,.0f} samples/s"
        if stage == "read":
            alone += f", {stages.bytes / spent / 1e6:,.1f} MB/s"
        table.add_row(stage, f"{1000 * spent / stages.samples:.3f}", f"{100 * spent / total:.0f} %", alone)
    console.print(table)
    what = "pictures" if "decode" in stages.seconds else "pairs of texts"
    table = Table("loader processes", f"{what}/s", "texts/s", "read MB/s", "first batch")
    for rate in rates:
        per_sample = rate.samples_per_second / stages.samples
        table.add_row(
            str(rate.workers),
            f"{rate.samples_per_second:,.0f}",
            f"{per_sample * stages.texts:,.0f}",
            f"{per_sample * stages.bytes / 1e6:,.1f}",
            f"{rate.first_batch_seconds:.1f} s",
        )
    console.print(table)
    console.print(verdict(stages, rates))


def verdict(stages: Stages, rates: Sequence[LoaderRate]) -> str:
    """What limits the loader, in words."""
    names = {
        "read": "reading from the disk or its cache",
        "captions": "parsing captions",
        "decode": "decoding pictures (data.draft_jpeg=true decodes large JPEGs faster)",
        "resize": "resizing pictures",
        "tokenize": "tokenizing",
    }
    share = stages.seconds[stages.limit] / sum(stages.seconds.values())
    best = max(rates, key=lambda rate: rate.samples_per_second)
    return (
        f"limit: {names[stages.limit]} takes {100 * share:.0f} % of the work; best here: {best.workers} loader "
        f"processes on {available_cpus()} CPUs. Files that were read before may come from memory"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print, and write JSON where asked."""
    cpus = available_cpus()
    workers = options.workers or sorted({0, 1, *(2**i for i in range(1, 12) if 2**i <= cpus)})
    if any(workers):
        start_loader_server()  # as a training does, before anything else
    language = None if options.language is None else language_code(options.language)
    dataset = open_dataset(
        options.urls,
        load_tokenizer(options.tokenizer),
        language=language,
        size=options.size,
        max_length=options.max_length,
    )
    stages = measure_stages(dataset, options.seconds)
    rates = [measure_loader(dataset, count, options.seconds) for count in workers]
    print_bench(stages, rates, Console())
    if options.json is not None:
        found = {"stages": asdict(stages), "limit": stages.limit, "loader": [asdict(rate) for rate in rates]}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")

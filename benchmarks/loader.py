"""Our loader beside the `webdataset` library's usual pipeline, on one core: ``python benchmarks/loader.py``.

With ``--peers PYTHON``, the interpreter of the peers' environment (peers.txt), also beside open_clip's own loader
(loader_peer.py). Its tokenizer is that of `transformers`; the peer's below is the faster `tokenizers` library itself.

Makes shards of synthetic 640 x 480 JPEGs and of parallel texts once, below --directory, then measures in turns:

    raw             Pillow alone, from memory: decode and resize, the limit of any loader; raw_draft by `Image.draft`
    ours, ours_draft        PairDataset behind a DataLoader: 8-bit pixels, as they go to the device; by data.draft_jpeg
    ours_float, ours_draft_float    the same, and normalised to float32 on this core: in a training, the device's work
    peer            WebDataset(resampled) + shuffle + decode("pil") + map + to_tuple + batched, WebLoader, with our
                    transform on its pictures: the same pixels; one text tokenized at a time and padded
    peer_usual      the same with the transform that torchvision's ToTensor and Normalize would make
    open_clip, open_clip_texts    open_clip's pipeline with the same steps as torchvision's transform, and its tokenizer
    *_texts         parallel texts, tokenized for student and teacher; *_strings without tokenizers

Every measurement is a process of its own that computes on one thread without loader processes. Rates are per second of
that process's CPU time, so that they are per core whatever else the machine does; a ratio is that of one round.
Then: seconds to the first batch, and what draft does to the pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import sides
import torch
from loader_peer import BATCH, MAX_LENGTH, SIDE, rate, resized, usual_transform
from PIL import Image
from torch.utils.data import DataLoader

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder, TextPairDecoder
from altclip_train.data.processes import start_loader_server
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.data.samples import decode_image
from altclip_train.processing import CLIPTokenizer, ImageTransform, XLMRTokenizer
from altclip_train.processing.training import train_clip_bpe, train_sentencepiece
from altclip_train.types import ImageTextBatch, PackedTokens

PICTURES_PER_SHARD, TEXTS_PER_SHARD = 500, 10_000
MEASURED = {
    "pictures": ["raw", "raw_draft", "ours", "ours_draft", "ours_float", "ours_draft_float", "peer", "peer_usual"],
    "texts": ["ours_texts", "peer_texts", "ours_strings", "peer_strings"],
}
OPEN_CLIP = {"open_clip": "pictures", "open_clip_texts": "texts"}
AIMS = {
    "ours_float / peer": 1.2,
    "ours_draft_float / peer": 2.2,
    "ours / raw": 0.9,
    "ours_draft / raw_draft": 0.9,
    "ours_texts / peer_texts": 8.0,
    "ours_strings / peer_strings": 8.0,
    "ours_float / open_clip": 1.2,
    "ours_draft_float / open_clip": 2.2,
    "ours_texts / open_clip_texts": 8.0,
}
FIRST_BATCH = {
    "pictures, no index yet": ("ours", "0", "no_index"),
    "pictures": ("ours", "0", "indexed"),
    "pictures, one loader process": ("ours", "1", "indexed"),
    "pictures, one loader process, its server at hand": ("ours", "1", "at_hand"),
    "texts": ("ours_texts", "0", "indexed"),
    "texts, one loader process": ("ours_texts", "1", "indexed"),
    "texts, one loader process, its server at hand": ("ours_texts", "1", "at_hand"),
}


# Data


def make_data(root: Path, pictures: int, number_of_texts: int) -> None:
    """Shards and tokenizers, made once."""
    if (root / "complete").exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    words = [_word(random.Random(n), "etaoinshrdlucmfwypvbgkjqxz", 2, 9) for n in range(4000)]
    signs = [chr(0x4E00 + n) for n in range(2500)]
    texts = [_entry(random.Random(n), words, signs) for n in range(number_of_texts)]
    for start in range(0, len(texts), TEXTS_PER_SHARD):
        numbers = range(start, min(start + TEXTS_PER_SHARD, len(texts)))
        entries = ((n, {"json": json.dumps(texts[n]).encode()}) for n in numbers)
        _write_shard(root / f"texts-{start // TEXTS_PER_SHARD:04d}.tar", entries)
    for start in range(0, pictures, PICTURES_PER_SHARD):
        numbers = range(start, min(start + PICTURES_PER_SHARD, pictures))
        samples = ((n, {"jpg": _jpeg(n), "txt": texts[n % len(texts)]["en"].encode()}) for n in numbers)
        _write_shard(root / f"pictures-{start // PICTURES_PER_SHARD:04d}.tar", samples)
    train_clip_bpe([text["en"] for text in texts[:4000]], 4000).save_pretrained(root / "clip")
    some = [text[language] for text in texts[:4000] for language in ("en", "zh")]
    train_sentencepiece(some, root / "student" / "sentencepiece.bpe.model", 6000)
    XLMRTokenizer.from_pretrained(root / "student").save_pretrained(root / "student")  # as `transformers` reads it
    (root / "complete").touch()


def _word(draw: random.Random, letters: str, shortest: int, longest: int) -> str:
    return "".join(draw.choices(letters, k=draw.randint(shortest, longest)))


def _entry(draw: random.Random, words: list[str], signs: list[str]) -> dict[str, str]:
    english = " ".join(draw.choices(words, k=draw.randint(6, 16)))
    return {"en": english, "zh": "".join(draw.choices(signs, k=draw.randint(8, 24)))}


def _jpeg(number: int) -> bytes:
    """Noise at every scale, as strong as it is coarse, which is what photographs are like: about 100 KB."""
    draw = np.random.default_rng(number)
    picture = np.full((480, 640, 3), 128.0)
    for width in (4, 16, 64, 160, 320, 640):
        small = draw.integers(0, 256, (width * 3 // 4, width, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        picture += (np.asarray(large) - 127.5) * min(0.8, 12 / width)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _write_shard(path: Path, samples: Iterable[tuple[int, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, fields in samples:
            for field, data in fields.items():
                member = tarfile.TarInfo(f"{number:08d}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


# What is measured: iterators over batches


class AsStrings:
    """In place of a tokenizer, to measure what comes before it."""

    def pack(self, texts: list[str], max_length: int) -> PackedTokens:  # noqa: ARG002
        return texts  # type: ignore[return-value]


def tokenizers(root: Path) -> tuple[XLMRTokenizer, CLIPTokenizer]:
    return XLMRTokenizer.from_pretrained(root / "student"), CLIPTokenizer.from_pretrained(root / "clip")


def ours(root: Path, kind: str) -> PairDataset:
    if kind in ("ours_texts", "ours_strings"):
        student, teacher = tokenizers(root) if kind == "ours_texts" else (AsStrings(), AsStrings())
        texts = TextPairDecoder(student_tokenizer=student, teacher_tokenizer=teacher, max_length=MAX_LENGTH)
        return PairDataset(sources=[str(root / "texts-*.tar")], plan_seed=0, decoder=texts)
    transform = ImageTransform(size=SIDE, crop_size=SIDE)
    pictures = ImageTextDecoder(
        tokenizer=tokenizers(root)[1],
        image_transform=transform,
        max_length=MAX_LENGTH,
        draft=transform.resized_size if "draft" in kind else None,
    )
    sources = [{"urls": str(root / "pictures-*.tar"), "languages": ["en"]}]
    return PairDataset(sources=sources, plan_seed=0, decoder=pictures)


def our_loader(root: Path, kind: str, batch_size: int, workers: int = 0) -> DataLoader:
    dataset = ours(root, kind)
    sampler = PlannedBatchSampler(
        plan=dataset.plan, global_batch_size=batch_size, rank=0, world_size=1, epoch_samples=1 << 40
    )
    context = "forkserver" if workers else None
    options: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": context}
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=as_it_is, **options)


def normalized(batches: Iterable[ImageTextBatch]) -> Iterator[torch.Tensor]:
    transform = ImageTransform(size=SIDE, crop_size=SIDE)
    for batch in batches:
        assert batch.pixel_values is not None
        yield transform.normalize(batch.pixel_values)


def as_it_is(batch: Any) -> Any:
    return batch


def peer_loader(root: Path, kind: str, batch_size: int) -> Iterable[Any]:
    """The pipeline of webdataset's documentation, with one tokenizer call per text as trainers write it."""
    import webdataset as wds

    pictures = kind in ("peer", "peer_usual")
    urls = sorted(map(str, root.glob("pictures-*.tar" if pictures else "texts-*.tar")))
    data = wds.WebDataset(
        urls, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker
    ).shuffle(1000, initial=1000)
    student, teacher = tokenizers(root)
    if pictures:
        transform = ImageTransform(size=SIDE, crop_size=SIDE) if kind == "peer" else usual_transform
        data = data.decode("pil").to_tuple("jpg", "txt").map_tuple(transform, lambda text: padded(teacher, text))
    elif kind == "peer_strings":
        data = data.decode().to_tuple("json").map(lambda sample: (sample[0]["zh"], sample[0]["en"], sample[0]["en"]))
    else:
        data = data.decode().to_tuple("json").map(lambda sample: parallel(sample[0], student, teacher))
    return wds.WebLoader(data.batched(batch_size, partial=False), batch_size=None, num_workers=0)


def parallel(entry: dict[str, str], student: XLMRTokenizer, teacher: CLIPTokenizer) -> tuple[torch.Tensor, ...]:
    return padded(student, entry["zh"]), padded(student, entry["en"]), padded(teacher, entry["en"])


def padded(tokenizer: XLMRTokenizer | CLIPTokenizer, text: str) -> torch.Tensor:
    ids = torch.full((MAX_LENGTH,), tokenizer.pad_token_id)
    tokens = tokenizer._tokenizer.encode(text).ids  # the library's own, without our memory of words
    tokens = [*tokens[:-1][: MAX_LENGTH - 1], tokenizer.eos_token_id]
    ids[: len(tokens)] = torch.tensor(tokens)
    return ids


def raw(root: Path, draft: bool, batch_size: int) -> Iterator[Any]:
    """Pictures from memory, decoded and resized, and no more."""
    encoded = jpegs(root)
    while True:
        for start in range(0, len(encoded) - batch_size + 1, batch_size):
            batch = []
            for data in encoded[start : start + batch_size]:
                image = Image.open(io.BytesIO(data))
                if draft:
                    image.draft(None, (SIDE * 640 // 480, SIDE))
                batch.append(resized(image.convert("RGB")))
            yield batch


def jpegs(root: Path) -> list[bytes]:
    with tarfile.open(root / "pictures-0000.tar") as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]


# Measurements, each in a process of its own


def batches_of(root: Path, kind: str, batch_size: int) -> Iterable[Any]:
    if kind.startswith("raw"):
        return raw(root, kind == "raw_draft", batch_size)
    if not kind.startswith("ours"):
        return peer_loader(root, kind, batch_size)
    batches = our_loader(root, kind, batch_size)
    return normalized(batches) if kind.endswith("_float") else batches


def measure_first_batch(root: Path, kind: str, workers: int, state: str) -> dict[str, float]:
    """Seconds from the making of the dataset to its first batch.

    The server of loader processes begins with them, and has yet to import torch; or it is "at_hand" before, as in a
    training, where it imports while Lightning is imported and the model is made.
    """
    if state == "no_index":
        for index in root.glob("*.idx"):
            index.unlink()
    if state == "at_hand":
        start_loader_server("webdataset")
        with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
            pool.submit(os.getpid).result()
    start = time.perf_counter()
    if workers:
        start_loader_server("webdataset")  # which this script imports, and a training does not
    next(iter(our_loader(root, kind, BATCH["pictures" if kind == "ours" else "texts"], workers)))
    return {"seconds": time.perf_counter() - start}


def measure_draft(root: Path) -> dict[str, float]:
    """How far pictures decoded by draft are from the exact ones, in grey levels of 255."""
    transform = ImageTransform(size=SIDE, crop_size=SIDE)
    differences = []
    for data in islice(jpegs(root), 100):
        exact, draft = (transform(decode_image({"jpg": data}, draft=d)) for d in (None, transform.resized_size))
        differences.append((exact - draft).abs() * torch.tensor((0.2686, 0.2613, 0.2758))[:, None, None] * 255)
    levels = torch.stack(differences)
    return {"mean": levels.mean().item(), "p99": levels.flatten()[::37].quantile(0.99).item()}


def in_new_process(arguments: argparse.Namespace, *options: str, what: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--directory", str(arguments.directory), "--measure", what, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_peers_environment(arguments: argparse.Namespace, kind: str, seconds: str) -> dict[str, float]:
    script = Path(__file__).with_name("loader_peer.py")
    command = [arguments.peers, str(script), str(arguments.directory), kind, seconds]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(root: Path, what: str, *options: str) -> dict[str, float]:
    torch.set_num_threads(1)
    if what == "rate":
        kind = options[0]
        batch_size = BATCH["pictures" if kind in MEASURED["pictures"] else "texts"]
        return rate(batches_of(root, kind, batch_size), batch_size, float(options[1]))
    if what == "first_batch":
        return measure_first_batch(root, options[0], int(options[1]), options[2])
    return measure_draft(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("outputs/benchmarks/loader"))
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of CPU time, per measurement")
    parser.add_argument("--peers", metavar="PYTHON", help="the interpreter of the peers' environment")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.directory, *arguments.measure)))
        return
    make_data(arguments.directory, arguments.pictures, arguments.texts)
    kinds = [*MEASURED["pictures"], *MEASURED["texts"], *(OPEN_CLIP if arguments.peers else [])]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            peers = kind in OPEN_CLIP
            measured = in_peers_environment if peers else partial(in_new_process, what="rate")
            rates[kind].append(measured(arguments, kind, str(arguments.seconds))["per_cpu_second"])
    rows = [sides.row(f"{kind}, a core", values, "samples/s") for kind, values in rates.items()]
    rows += ratios_of(rates)
    for name, how in FIRST_BATCH.items():
        seconds = [in_new_process(arguments, *how, what="first_batch")["seconds"] for _ in range(arguments.rounds)]
        rows.append(sides.row(f"first batch, {name}", seconds, "s", 2.0, at_most=True))
    draft = in_new_process(arguments, what="draft")
    rows.append(sides.row("pixels by draft, mean difference of 255 levels", [draft["mean"]], "levels"))
    rows.append(sides.row("pixels by draft, 99 % differ by at most", [draft["p99"]], "levels"))
    facts = {name: version(name) for name in ("pillow", "webdataset", "numpy")}
    options = argparse.Namespace(device="cpu", threads=1, json=arguments.json)
    sides.report(options, "Loader", rows, pictures="JPEG 640 x 480", batch=BATCH, **facts)


def ratios_of(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The ratios that there are aims for, of what was measured."""
    rows = []
    for name, aim in AIMS.items():
        own, peer = name.split(" / ")
        if peer in rates:
            rows.append(sides.row(name, [a / b for a, b in zip(rates[own], rates[peer], strict=True)], aim=aim))
    return rows


if __name__ == "__main__":
    main()

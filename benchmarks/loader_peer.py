"""The loader that open_clip trains from, as its `open_clip_train/data.py` builds it of `webdataset`'s stages.

Run in the peers' environment by loader.py: ``python benchmarks/loader_peer.py DIRECTORY KIND SECONDS``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image

SIDE, MAX_LENGTH = 224, 77
BATCH = {"pictures": 64, "texts": 256}


def rate(batches: Iterable[Any], batch_size: int, seconds: float) -> dict[str, float]:
    """Samples per second of CPU time and of wall time, after a beginning that is not counted."""
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < seconds:
        next(iterator)
        count += batch_size
    return {"per_cpu_second": count / (time.process_time() - cpu), "per_second": count / (time.perf_counter() - wall)}


def usual_transform(image: Image.Image) -> torch.Tensor:
    """Resize, CenterCrop, ToTensor, Normalize, in the steps of torchvision's classes of these names."""
    image = resized(image)
    pixels = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    return pixels.sub_(mean).div_(std)


def resized(image: Image.Image) -> Image.Image:
    """The shorter edge to SIDE, then the middle."""
    width, height = image.size
    scale = SIDE / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def open_clip_loader(root: Path, kind: str) -> Iterable[Any]:
    """Batches of pictures and texts; of parallel texts with one call of its tokenizer per text."""
    from peers import open_clip

    hf_tokenizer = open_clip().tokenizer.HFTokenizer
    clip = hf_tokenizer(str(root / "clip"), context_length=MAX_LENGTH)
    if kind == "open_clip":
        shards, batch = sorted(map(str, root.glob("pictures-*.tar"))), BATCH["pictures"]
        stages = [
            wds.decode("pilrgb"),
            wds.rename(image="jpg;png;jpeg;webp", text="txt"),
            wds.map_dict(image=usual_transform, text=lambda text: clip(text)[0]),
            wds.to_tuple("image", "text"),
        ]
    else:
        shards, batch = sorted(map(str, root.glob("texts-*.tar"))), BATCH["texts"]
        student = hf_tokenizer(str(root / "student"), context_length=MAX_LENGTH)

        def tokenized(sample: dict[str, Any]) -> tuple[torch.Tensor, ...]:
            entry = sample["json"]
            return student(entry["zh"])[0], student(entry["en"])[0], clip(entry["en"])[0]

        stages = [wds.decode("pilrgb"), wds.map(tokenized)]
    pipeline = wds.DataPipeline(
        wds.ResampledShards(shards, deterministic=True),
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=1000, initial=1000),  # 5000 there, which fills while it is measured
        *stages,
        wds.batched(batch, partial=False),
    )
    return wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, measured, duration = sys.argv[1:]
    size = BATCH["pictures" if measured == "open_clip" else "texts"]
    print(json.dumps(rate(open_clip_loader(Path(directory), measured), size, float(duration))))

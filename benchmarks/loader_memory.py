"""Resident memory of one process that passes over the same source again and again.

    python benchmarks/loader_memory.py                                  # ten passes over 1 GB; plot and JSON into docs/
    python benchmarks/loader_memory.py --megabytes 20 --docs /tmp/try   # a quick look

The source is made in --data (default: a temporary directory) of JPEGs of 640 x 480, and read by the loader of stage
two, with decoding and transform, in this process. Exits with 1 unless memory is flat: the mean of the last pass is
within --tolerance of that of the third.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.processing.images import ImageTransform
from altclip_train.types import PackedTokens

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BATCH = 32
SHARD_SAMPLES = 1000
WARM_PASSES = 2


class Bytes:
    """A tokenizer that gives utf-8 bytes: the soak is about reading."""

    def pack(self, texts: list[str], max_length: int) -> PackedTokens:
        return PackedTokens.from_lists([list(text.encode())[:max_length] for text in texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the source (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=0.03, help="growth that counts as flat")
    parser.add_argument("--data", type=Path, help="where to make the source; kept, and used again if it is there")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where loader-memory.png and .json go")
    options = parser.parse_args()
    if options.passes <= WARM_PASSES:
        parser.error(f"--passes must be more than {WARM_PASSES}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or Path(temporary)
        megabytes = make_source(data, options.megabytes)
        record = soak(str(data / "*.tar"), options.passes)
    result = {"megabytes": round(megabytes, 1), **summary(record, options.tolerance), "machine": machine(), **record}
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "loader-memory.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, options.docs / "loader-memory.png")
    print(json.dumps({key: value for key, value in result.items() if key not in ("samples", "resident_mb")}, indent=1))
    sys.exit(0 if result["flat"] else 1)


def make_source(directory: Path, megabytes: int) -> float:
    """Shards of at least ``megabytes`` MB unless they are there; returns their size in MB."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = [jpeg(seed) for seed in range(50)]
    number = 0
    while (size := sum(path.stat().st_size for path in directory.glob("*.tar")) / 1e6) < megabytes:
        partial = directory / "shard.partial"
        with tarfile.open(partial, "w") as tar:
            for sample in range(min(SHARD_SAMPLES, 1 + int((megabytes - size) * 1e6 / len(pictures[0])))):
                key = f"{number:04d}{sample:06d}"
                for name, content in ((f"{key}.jpg", pictures[sample % 50]), (f"{key}.en.txt", key.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        partial.rename(directory / f"{number:05d}.tar")
        number += 1
    return size


def jpeg(seed: int) -> bytes:
    """A picture of 640 x 480 as detailed as a photo: noise, made larger."""
    noise = np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def soak(urls: str, passes: int) -> dict[str, Any]:
    """Read every batch of ``passes`` epochs; resident memory about fifty times in each."""
    transform = ImageTransform(size=224, crop_size=224)
    decoder = ImageTextDecoder(tokenizer=Bytes(), image_transform=transform, max_length=77)
    dataset = PairDataset(sources=[urls], plan_seed=0, decoder=decoder)
    sampler = PlannedBatchSampler(plan=dataset.plan, global_batch_size=min(BATCH, len(dataset)), rank=0, world_size=1)
    every = max(1, len(sampler) // 50)
    samples, resident, done, begun = [], [], 0, time.perf_counter()
    for number in range(passes):
        sampler.seek(number * len(sampler) * sampler.global_batch_size)
        for batch, positions in enumerate(sampler):
            done += len(dataset.__getitems__(positions).keys)
            if batch % every == 0:
                samples.append(done)
                resident.append(round(resident_mb(), 2))
        print(f"pass {number + 1} of {passes}: {resident[-1]:.0f} MB resident", file=sys.stderr)
    seconds = round(time.perf_counter() - begun, 1)
    return {"passes": passes, "seconds": seconds, "samples": samples, "resident_mb": resident}


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES / 1e6


def summary(record: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Mean of the first pass that counts and of the last one, and whether they are equal enough."""
    by_pass = np.array_split(np.array(record["resident_mb"]), record["passes"])
    first, last = float(by_pass[WARM_PASSES].mean()), float(by_pass[-1].mean())
    growth = last / first - 1
    return {
        "third_pass_mb": round(first, 1),
        "last_pass_mb": round(last, 1),
        "growth": round(growth, 4),
        "flat": growth <= tolerance,
    }


def machine() -> str:
    system = f"{platform.machine()}, Linux {platform.release()}"
    return f"{system}, Python {platform.python_version()}, torch {torch.__version__}"


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(result["samples"], result["resident_mb"], linewidth=1)
    for number in range(1, result["passes"]):
        axes.axvline(result["samples"][-1] * number / result["passes"], color="0.85", linewidth=0.8, zorder=0)
    axes.set(
        xlabel="samples read; lines part the passes",
        ylabel="resident memory, MB",
        ylim=(0, 1.15 * max(result["resident_mb"])),
    )
    axes.set_title(f"{result['passes']} passes over {result['megabytes']:,.0f} MB in one process", fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

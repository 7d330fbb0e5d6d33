"""Sheets of pictures that a run leaves in ``pictures/`` and gives to its loggers, under one name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from altclip_train.data.contact_sheet import Pictured, contact_sheet
from altclip_train.evaluation.benchmarks import Benchmark
from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.report.record import read_samples

FOLDER = "pictures"


def log_training_samples(run: Path, trainer: L.Trainer) -> None:
    """The samples that the report shows, as ``training_samples``; nothing where they have no pictures."""
    samples = [Pictured(one.key, one.picture, one.captions) for one in read_samples(run) if one.picture is not None]
    if samples:
        _log(run, trainer, "training_samples", samples, "The first samples of the training order")


def log_found_pictures(run: Path, trainer: L.Trainer, benchmark: Benchmark, results: Sequence[BenchmarkResult]) -> None:
    """As ``<benchmark>/<language>/found``: each row a picture with its caption, then the pictures that this finds."""
    for result in results:
        if result.benchmark == benchmark.name and result.examples is not None:
            name = f"{result.benchmark}/{result.language}/found"
            subtitle = "Each row: a picture, and what its caption finds, best first"
            _log(run, trainer, name, list(_found(benchmark, result)), subtitle)


def _found(benchmark: Benchmark, result: BenchmarkResult) -> Iterator[Pictured]:
    examples = result.examples
    assert examples is not None
    numbers: list[int] = examples.pictures.tolist()
    captions: list[int] = examples.captions.tolist()
    found: list[list[int]] = examples.found_pictures.tolist()
    pictures = benchmark.show(sorted({*numbers, *(other for row in found for other in row)}))
    for number, caption, row in zip(numbers, captions, found, strict=True):
        yield Pictured(result.pictures[number], pictures[number], {result.language: [result.texts[caption]]})
        for place, other in enumerate(row, 1):
            yield Pictured(f"{place}{' right' if other == number else ''}", pictures[other], {})


def _log(run: Path, trainer: L.Trainer, name: str, samples: Sequence[Pictured], subtitle: str) -> None:
    file = run / FOLDER / f"{name.replace('/', '_')}.png"
    file.parent.mkdir(exist_ok=True)
    contact_sheet(samples, file, title=name, subtitle=subtitle)
    log_picture(trainer.loggers, name, file, step=trainer.global_step)


def log_picture(loggers: Iterable[Logger], name: str, file: Path, *, step: int) -> None:
    """To every logger that takes pictures; metrics.csv has the file beside it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(file)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(file) as picture:
                logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

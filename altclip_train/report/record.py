"""What a report shows of a run: recorded while it trains, read back from its directory."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from torch import nn

from altclip_train.data.dataset import PairDataset
from altclip_train.data.samples import BadSample, decode_captions, decode_image, is_image_field
from altclip_train.data.urls import SECRET, is_secret, shown
from altclip_train.files import written_whole
from altclip_train.model_card import RunFacts
from altclip_train.processing.images import to_rgb
from altclip_train.training import runs
from altclip_train.training.bad_samples import FILE as BAD_SAMPLES
from altclip_train.training.facts import read_run
from altclip_train.training.metrics_csv import read_metrics

SAMPLES = "training_samples.jsonl"
PICTURE = 224  # pixels of the longer side


class Sample(NamedTuple):
    key: str
    source: str
    captions: dict[str, list[str]]
    picture: Image.Image | None


class BadReason(NamedTuple):
    reason: str
    visits: int | None  # how often training met one; None where that was not logged
    samples: int  # different ones
    example: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run directory, read."""

    directory: Path
    facts: RunFacts
    document: Mapping[str, Any]  # run.json
    metrics: Mapping[str, Sequence[tuple[int, float]]]
    samples: Sequence[Sample]
    bad_samples: Sequence[BadReason]
    finished: bool

    @property
    def step(self) -> int | None:
        """The last one that is known."""
        logged = [points[-1][0] + 1 for points in self.metrics.values()]
        return self.facts.steps if self.finished and self.facts.steps is not None else max(logged, default=None)


def read_record(run: Path) -> RunRecord:
    """Raises FileNotFoundError or ValueError that name a file of the run."""
    metrics = read_metrics(run / "metrics.csv")
    return RunRecord(
        directory=run,
        facts=read_run(run),
        document=runs.read_run_file(run),
        metrics=metrics,
        samples=read_samples(run),
        bad_samples=_bad_samples(run / BAD_SAMPLES, metrics),
        finished=runs.is_finished(run),
    )


def read_samples(run: Path) -> list[Sample]:
    """What `write_samples` kept."""
    return [Sample(**entry, picture=_decoded(code)) for entry, code in _read_samples(run / SAMPLES)]


def write_samples(run: Path, dataset: PairDataset[Any], count: int) -> None:
    """Keep small copies of the first sound samples of the training order, with their captions in every language."""
    lines: list[str] = []
    for position in range(2 * count):
        with suppress(BadSample, OSError):  # training counts it
            key, source, members = dataset.undecoded(position)
            captions = decode_captions(members, default_language=source.default_language)
            wanted = {code: texts for code, texts in captions.items() if code in (source.languages or captions)}
            picture = _encoded(decode_image(members)) if any(map(is_image_field, members)) else None
            entry = {"key": key, "source": source.label, "captions": wanted, "picture": picture}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        if len(lines) == count:
            break
    with written_whole(run / SAMPLES) as partial:
        partial.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def command(overrides: Sequence[str]) -> str:
    """The line that starts this run again, without passwords and signatures."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    words = []
    for text, override in zip(overrides, parsed, strict=True):
        key, _, value = text.partition("=")
        for secret, harmless in _replacements(override.value()):
            value = value.replace(secret, harmless) if secret in value else SECRET
        hidden = value and is_secret(key.rpartition(".")[2])
        words.append(text if "=" not in text else f"{key}={SECRET if hidden else value}")
    return shlex.join(["python", "train.py", *words])


def environment(trainer: L.Trainer) -> dict[str, str]:
    """Machine and packages, as far as they may change what a run does."""
    device = trainer.strategy.root_device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "devices": f"{trainer.world_size} × {device.type} ({named})",
        "CPU threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        **{name: version(name) for name in ("lightning", "hydra-core", "numpy", "pillow", "tokenizers")},
    }


def parameter_counts(module: nn.Module) -> dict[str, dict[str, int]]:
    """Trainable and frozen parameters of each part of a stage, by its name in ``stage.locked`` where it has one."""
    inner = module.get_submodule("model") if "model" in dict(module.named_children()) else module
    parts: dict[str, list[nn.Parameter]] = {name: [*child.parameters()] for name, child in inner.named_children()}
    parts |= {name: [one] for part in {module, inner} for name, one in part.named_parameters(recurse=False)}
    return {
        name: {
            "trainable": sum(one.numel() for one in parameters if one.requires_grad),
            "frozen": sum(one.numel() for one in parameters if not one.requires_grad),
        }
        for name, parameters in parts.items()
    }


def _replacements(value: Any) -> Iterator[tuple[str, str]]:
    """Texts in a value that hold a secret, and what stands for them."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if is_secret(str(key)) and one:
                yield str(one), SECRET
            yield from _replacements(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _replacements(one)
    elif isinstance(value, str) and shown(str(value)) != value:
        yield str(value), shown(str(value))


def _read_samples(file: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        entry = json.loads(line)
        yield entry, entry.pop("picture")


def _encoded(picture: Image.Image) -> str:
    small = to_rgb(picture)
    small.thumbnail((PICTURE, PICTURE))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _decoded(code: str | None) -> Image.Image | None:
    return None if code is None else Image.open(io.BytesIO(base64.b64decode(code)))


def _bad_samples(file: Path, metrics: Mapping[str, Sequence[tuple[int, float]]]) -> list[BadReason]:
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else ():
        with suppress(ValueError):  # of a line that is being written
            entry = json.loads(line)
            found[entry["reason"]] += 1
            detail = f": {entry['detail']}" if entry["detail"] else ""
            examples.setdefault(entry["reason"], f"{entry['key']} in {entry['shard']}{detail}")
    logged = {reason: metrics.get(f"data/skipped/{reason}") for reason in found}
    visits = {reason: int(points[-1][1]) if points else None for reason, points in logged.items()}
    return [BadReason(reason, visits[reason], count, examples[reason]) for reason, count in found.most_common()]

"""What a run records of itself, and how it is read back for a model card."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from altclip_train.data.decoders import ENGLISH
from altclip_train.data.starter import LANGUAGES
from altclip_train.model_card import RunFacts, Scores
from altclip_train.training import runs
from altclip_train.training.metrics_csv import read_metrics


def software() -> dict[str, str | None]:
    """Versions that made a run; the commit is None outside a checkout and ends in -dirty with local changes."""
    return {"altclip_train": version("altclip_train"), "commit": _commit(), "torch": version("torch")}


def _commit() -> str | None:
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None  # installed; a repository further up would be another project's
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def read_run(run: Path, *, step: int | None = None) -> RunFacts:
    """Facts of a run directory. Raises FileNotFoundError or ValueError that name its file.

    ``step`` is that of a checkpoint, whose scores are those of that step alone; None is the end of the run.
    """
    config, described = read_config(run), runs.read_run_file(run)
    start = described.get("start")
    before = Path(start).resolve().parent if start is not None else None
    return RunFacts(
        stage=described["stage"],
        config=config,
        sha256=described["sha256"],
        software=described.get("software", {}),
        samples=described.get("samples"),
        languages=_languages(config, described["stage"]),
        steps=described.get("steps") if step is None else step,
        scores=_scores(run, config, step),
        earlier=read_run(before) if before is not None and _is_run(before) else None,
    )


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration that a run leaves."""
    file = run / "config.yaml"
    if not _is_run(run):
        raise FileNotFoundError(f"{run} is not a run directory: it lacks {file.name} or {runs.RUN_FILE}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected the configuration of a run")
    return content


def _is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file() and (directory / runs.RUN_FILE).is_file()


def _languages(config: Mapping[str, Any], stage: str) -> list[str] | None:
    data = config["data"]
    languages = data.get("languages")
    if languages is None:
        sources = data.get("parallel_texts") or data.get("image_texts") or []
        named = [source.get("languages") if isinstance(source, Mapping) else None for source in sources]
        if all(named):
            languages = [language for one in named for language in one or []]
        elif data.get("starter") is not None:
            languages = LANGUAGES
        else:
            return None
    # Stage one trains each text also as English.
    return list(dict.fromkeys([*([ENGLISH] if stage == "teacher" else []), *languages]))


def _scores(run: Path, config: Mapping[str, Any], step: int | None) -> list[Scores]:
    """Results of `results.json` where the evaluation of this model left one there, else of `metrics.csv`."""
    file = run / "results.json"
    if step is None and file.is_file():
        document = json.loads(file.read_text(encoding="utf-8"))
        if Path(document["checkpoint"]).resolve() == (run / runs.MODEL).resolve():
            keys = ("benchmark", "language", "metrics")
            return [Scores(**{key: entry[key] for key in keys}) for entry in document["results"]]
    splits = {one["name"]: one.get("split") for one in (config.get("eval") or {}).values()}
    found: dict[tuple[str, str], dict[str, float]] = {}
    for column, value in _logged(run, step).items():
        name, _, rest = column.partition("/")
        language, _, metric = rest.partition("/")
        if name in splits and metric:
            found.setdefault((name, language), {})[metric] = value
    return [
        Scores(benchmark=name, language=language, metrics=metrics, split=splits[name])
        for (name, language), metrics in found.items()
    ]


def _logged(run: Path, step: int | None) -> dict[str, float]:
    """By column of `metrics.csv`, the value at ``step``, or the last one."""
    found = {name: dict(points) for name, points in read_metrics(run / "metrics.csv").items()}
    if step is not None:
        return {name: values[step] for name, values in found.items() if step in values}
    return {name: values[max(values)] for name, values in found.items()}

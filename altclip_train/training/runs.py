"""Run directories: ``outputs/<experiment or stage>/<date_time>/``.

A run is finished when it holds ``model/``; ``latest`` beside it then points to it. A run without ``model/``
is unfinished and can be resumed when it holds a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from altclip_train.data.urls import REMOTE, RemoteUrl
from altclip_train.hub import local_directory
from altclip_train.training.launch import from_rank_zero
from altclip_train.training.manifest import checkpoints, problem

CHECKPOINTS = "checkpoints"
MODEL = "model"
RUN_FILE = "run.json"
SOURCES = ("clip", "student", "start")
HASHED = (".json", ".safetensors", ".bin", ".pt", ".model", ".txt", ".gz")


@lru_cache  # Hydra resolves the run directory more than once; the date must stay the same
def run_directory(outputs: str, name: str, resume: str | None, dry_run: bool = False) -> str:
    """Directory of the run that a command starts or, with ``resume``, continues.

    ``resume`` is None, "auto" (the newest unfinished run of this name, else a new one), a run directory, or the url of
    its mirror, from which it is fetched. All
    processes of a launcher get that of rank 0, whatever their clocks say. A dry run has none: Hydra, which makes the
    directory, is given one that is there.
    """
    return "." if dry_run else from_rank_zero(lambda: _run_directory(outputs, name, resume))


def _run_directory(outputs: str, name: str, resume: str | None) -> str:
    if resume is None:
        return str(Path(outputs) / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    if resume == "auto":
        unfinished = [run for run in _runs(Path(outputs) / name) if not is_finished(run) and newest_checkpoint(run)]
        return str(unfinished[-1]) if unfinished else _run_directory(outputs, name, None)
    if REMOTE.match(resume):
        from altclip_train.training.mirror import fetch_run  # with fsspec, which no other run needs here

        return str(fetch_run(RemoteUrl(resume.rstrip("/")), Path(outputs) / name))
    if newest_checkpoint(Path(resume)) is None:
        raise FileNotFoundError(
            f"resume={resume}: no checkpoint in {Path(resume) / CHECKPOINTS}; "
            "give a run directory that holds one, or resume=auto"
        )
    return resume


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the highest step that was written to its end; whether its contents are whole comes later."""
    complete = (path for path in reversed(checkpoints(run / CHECKPOINTS)) if problem(path, hashes=False) is None)
    return next(complete, None)


def is_finished(run: Path) -> bool:
    return (run / MODEL / "config.json").is_file()


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a run is made from: the stage, directories as the command names them, None where there is none."""

    stage: str
    clip: str | None
    student: str | None
    start: str | None


def describe_run(run: Path, description: Description) -> None:
    """Write what the run is made from, with hashes of the weights and tokenizers."""
    run.mkdir(parents=True, exist_ok=True)
    sources = {key: getattr(description, key) for key in SOURCES}
    document = {**asdict(description), "sha256": {k: _fingerprint(v) for k, v in sources.items() if v is not None}}
    _write(run, document)


def record(run: Path, **facts: Any) -> None:
    """Add to what ``run.json`` says of the run."""
    _write(run, {**read_run_file(run), **facts})


def read_run_file(run: Path) -> dict[str, Any]:
    """What ``run.json`` says."""
    return json.loads((run / RUN_FILE).read_text(encoding="utf-8"))


def _write(run: Path, document: dict[str, Any]) -> None:
    temporary = run / f"{RUN_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, run / RUN_FILE)


def check_sources(run: Path, keys: Sequence[str]) -> None:
    """Raise ValueError when a directory that the run was made from is gone or has changed since.

    ``keys`` are those of ``clip``, ``student`` and ``start`` that matter.
    """
    document = read_run_file(run)
    for key in keys:
        directory, recorded = document[key], document["sha256"].get(key)
        if directory is None or recorded == (found := _fingerprint(directory)):
            continue
        if found is None:
            raise FileNotFoundError(
                f"{run} was made with {key}={directory}, which is not a directory here ({Path.cwd()}): "
                "run the command where the run was started, or put the directory back"
            )
        raise ValueError(
            f"{run} was made with {key}={directory} of sha256 {recorded}, the directory now has {found}: "
            "put back the files that the run started from"
        )


def check_same(run: Path, description: Description) -> None:
    """Raise ValueError when a run to resume was made from something else: its frozen parts would change."""
    first = read_run_file(run)
    for key, wanted in asdict(description).items():
        found = first[key]
        if key in SOURCES and (found is None) == (wanted is None):
            same = wanted is None or first["sha256"][key] == _fingerprint(wanted)
        else:
            same = found == wanted
        if not same:
            raise ValueError(
                f"{run} was started with {key}={found}, this command has {key}={wanted}, or its files have changed: "
                f"resume with {key}={found} as it was, or start a new run"
            )


def point_latest_to(run: Path) -> None:
    """Let ``latest`` beside the run point to it, replacing an older link in one step."""
    temporary = run.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.name, target_is_directory=True)
    os.replace(temporary, run.parent / "latest")


def start_from(start: str | None, outputs: str, clip: str | None, student: str | None) -> str | None:
    """Model directory that stage two starts from: given, or with "auto" the newest teacher run's; or none."""
    return newest_teacher_run(outputs, clip, student) if start == "auto" else start


def newest_teacher_run(outputs: str, clip: str | None, student: str | None) -> str:
    """Model directory of the newest finished run of stage one.

    Raises FileNotFoundError when there is none, ValueError when it was made with another ``clip`` or
    ``student`` than this command names.
    """
    candidates = []
    for run in sorted(Path(outputs).glob(f"*/*/{RUN_FILE}"), key=lambda path: path.parent.name):
        description = json.loads(run.read_text(encoding="utf-8"))
        if run.parent.name != "latest" and description["stage"] == "teacher" and is_finished(run.parent):
            candidates.append((run.parent, description))
    if not candidates:
        raise FileNotFoundError(
            f"stage=contrastive continues from a finished teacher run, and {outputs}/ holds none. "
            "Run `python train.py stage=teacher` first, or give start=DIR with an AltCLIP model directory"
        )
    run, description = candidates[-1]
    for key, wanted in (("clip", clip), ("student", student)):
        found = description[key]
        same = found == wanted if None in (found, wanted) else description["sha256"][key] == _fingerprint(wanted)
        if not same:
            raise ValueError(
                f"the newest teacher run, {run}, was made with {key}={found}, but this command has {key}={wanted}, or "
                f"its files have changed since. Pass {key}={found} as it was, or run "
                f"`python train.py stage=teacher {key}={wanted}` first, or choose a run by start=RUN/model"
            )
    return str(run / MODEL)


def _runs(parent: Path) -> list[Path]:
    """Run directories below ``parent``, oldest first: their names are dates."""
    return sorted(path for path in parent.glob("*") if path.is_dir() and not path.is_symlink())


def _fingerprint(path_or_id: str | None) -> str | None:
    """SHA-256 over the weights, configuration and tokenizer of a directory or hub id; None where there is none."""
    if path_or_id is None or not (directory := local_directory(path_or_id, weights=True)).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.suffix in HASHED):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

"""Which checkpoints are whole: a manifest beside each says the size and SHA-256 of its files, and is written last.

A checkpoint is a file, or a directory with one file per shard. Neither is trusted without its manifest: a run that was
killed while it wrote has left none.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from altclip_train.files import read_json

PATTERN = "step_*.ckpt"  # names sort by step


def manifest_of(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint lies: beside it."""
    return checkpoint.with_name(f"{checkpoint.name}.json")


def write_manifest(checkpoint: Path) -> None:
    """Read back what was written, and say what it is. Everything before this must be on the disk already."""
    files = {
        name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for name, file in files_of(checkpoint).items()
    }
    manifest = manifest_of(checkpoint)
    incomplete = manifest.with_name(f"{manifest.name}.incomplete")
    with incomplete.open("w", encoding="utf-8") as stream:
        json.dump({"files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(incomplete, manifest)
    sync_directory(manifest.parent)


def problem(checkpoint: Path, *, hashes: bool = True) -> str | None:
    """Why a checkpoint cannot be trusted; None when it can. Without ``hashes`` only names and sizes are looked at."""
    manifest = manifest_of(checkpoint)
    if not manifest.is_file():
        return "it has no manifest, so writing it did not come to its end"
    try:
        files = read_json(manifest)["files"]
        recorded = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its manifest {manifest.name} is damaged"
    found = files_of(checkpoint)
    if found.keys() != recorded.keys():
        return f"it holds the files {sorted(found)}, its manifest lists {sorted(recorded)}"
    for name, file in found.items():
        size, sha256 = recorded[name]
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, its manifest says {size}"
        if hashes and _sha256(file) != sha256:
            return f"the contents of {name} differ from what its manifest says"
    return None


def checkpoints(directory: Path) -> list[Path]:
    """All of a directory, oldest first, whole or not."""
    return sorted(directory.glob(PATTERN))


def newest_whole(directory: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and why each newer one does not."""
    rejected: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints(directory)):
        if (reason := problem(checkpoint)) is None:
            return checkpoint, rejected
        rejected[checkpoint] = reason
    return None, rejected


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_of(checkpoint: Path) -> dict[str, Path]:
    """By name, from the directory in which the checkpoint lies."""
    paths = [path for path in checkpoint.rglob("*") if path.is_file()] if checkpoint.is_dir() else [checkpoint]
    return {path.relative_to(checkpoint.parent).as_posix(): path for path in sorted(paths)}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

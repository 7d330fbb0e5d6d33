"""Files read and written: JSON with errors that name the file, and files that are there only once they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError that names the file when it holds anything else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of the text's encoding, or of JSON
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected a JSON object")
    return content


def contents(directory: Path) -> str:
    """Names of what a directory holds, for errors: the first 20, or "nothing"."""
    names = sorted(entry.name for entry in directory.iterdir())
    return ", ".join(names[:20] + ["…"] * (len(names) > 20)) or "nothing"


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path to write to, which takes the name of `file` at the end: readers see the old file or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def publish_first(partial: Path, file: Path) -> bool:
    """Give a whole file its name, unless another process was faster; whether this one was first."""
    try:
        os.link(partial, file)  # a rename would take the file of a faster process away
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        os.replace(partial, file)
    return True

"""Which part of the work is this process's, where a launcher or a user starts several."""

from __future__ import annotations

import os
import re


def part_of_work(text: str | None = None) -> tuple[int, int]:
    """``(i, n)`` from "i/n" with i from 0, else from torchrun's or a SLURM array's variables, else ``(0, 1)``.

    Raises ValueError.
    """
    if text is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"part {text!r}: expected i/n, from 0/n to n-1/n")
        own, parts = int(match[1]), int(match[2])
    elif "WORLD_SIZE" in os.environ:
        own, parts = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    elif "SLURM_ARRAY_TASK_COUNT" in os.environ:
        first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", 0))
        own, parts = int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, int(os.environ["SLURM_ARRAY_TASK_COUNT"])
    else:
        own, parts = 0, 1
    if not 0 <= own < parts:
        raise ValueError(f"part {own}/{parts}: parts of n are 0/n to n-1/n")
    return own, parts

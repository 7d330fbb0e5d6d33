"""Memory of a device: what is free, and the most that was in use. On a CPU it is this process's part of the machine."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from altclip_train.heap import give_back_freed_memory

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Control groups of either version: limit, use, and what of the use is copies of files, which make room.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(device: torch.device) -> int:
    """Bytes that this process may have in use, those that it has among them.

    On a CPU the least that the machine and the control groups of the process leave. Raises ValueError where the system
    does not say it.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type != "cpu" or not (_PROC / "meminfo").is_file():
        raise ValueError(f"the free memory of {device.type} on {sys.platform} is not known: give a number, not auto")
    return _field(_PROC / "self/status", "VmRSS:") + min(
        _field(_PROC / "meminfo", "MemAvailable:"), *left_by_groups(_PROC / "self/cgroup", _GROUPS)
    )


def reset_peak(device: torch.device) -> None:
    """Count the peak anew from here, where the system can."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()
        with suppress(OSError):  # Linux alone has it
            (_PROC / "self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Most bytes in use since `reset_peak`: what torch has reserved on a GPU, elsewhere the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if (_PROC / "self/status").is_file():
        return _field(_PROC / "self/status", "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def left_by_groups(membership: Path, root: Path) -> Iterator[int]:
    """Bytes that each control group of a process, and each above it, still allows."""
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        group = top / path.lstrip("/")
        for directory in (group, *group.parents[: len(group.parts) - len(top.parts)]):
            for limit, used, files in _FILES:
                if (directory / limit).is_file() and (most := (directory / limit).read_text().strip()) != "max":
                    kept = _field(directory / "memory.stat", files, unit=1)
                    yield int(most) - int((directory / used).read_text()) + kept


def _field(file: Path, name: str, unit: int = 1024) -> int:
    """A number of a file that has one on each line, behind its name."""
    words = (line.split() for line in file.read_text().splitlines())
    return next(int(line[1]) * unit for line in words if line[0] == name)

"""What a process does with memory that torch frees on a CPU, where torch leaves it to the C library.

By default, glibc maps every tensor of 32 MB and more anew, smaller ones until one of their size was freed, and gives
them back when they are freed, so that the kernel fills their pages with zeros before a layer fills them with states.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED = 1 << 30  # bytes from which a tensor is still mapped by itself: tables of words, not states
MOST_OF_OLD = 32 << 20  # what glibc before 2.35 takes for it at most
NEVER = -1


def keep_freed_memory(device: torch.device | str) -> None:
    """Where `device` is a CPU, let tensors have the memory of those freed before.

    Other C libraries than glibc are left as they are.
    """
    if str(device).startswith("cpu") and (libc := _glibc()):
        _ = libc.mallopt(M_MMAP_THRESHOLD, MAPPED) or libc.mallopt(M_MMAP_THRESHOLD, MOST_OF_OLD)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def give_back_freed_memory() -> None:
    """Return to the system what is kept and not in use, so that the size of the process says what is."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None

"""What a process does with memory that torch frees on a CPU, where torch leaves it to the C library.

By default, glibc maps every large tensor anew and gives it back when it is freed, so that the kernel fills each of its
pages with zeros before a layer fills it with states.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAPPED = 1 << 30  # bytes from which a tensor is still mapped by itself: tables of words, not states
NEVER = -1


def keep_freed_memory() -> None:
    """Let tensors have the memory of those freed before. Other C libraries than glibc are left as they are."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED)
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

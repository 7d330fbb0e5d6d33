"""Locks on files: ``flock``, which the kernel drops with the process that held them, however it ended.

A number of a process would not do: it may be given again, and a dead process nobody waited for still has it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock_alone(descriptor: int) -> bool:
    """Hold an open file alone until closed; False while another does. Raises OSError where locks are unknown."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: str | Path) -> bool:
    """Whether the open file still has this name: between opening and locking it may have lost it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def remove_unheld(path: str | Path) -> bool:
    """Remove a file unless a process holds it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)  # NFS locks alone only what is open for writing
    except FileNotFoundError:
        return True
    except OSError:  # another user's
        return False
    try:
        if not lock_alone(descriptor):
            return False
        if is_at(descriptor, path):
            os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)

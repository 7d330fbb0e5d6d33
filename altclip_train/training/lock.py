"""One run at a time in a run directory."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import IO

from altclip_train.locks import lock_alone

logger = logging.getLogger(__name__)

FILE = ".lock"


class RunLock:
    """Held by the process that trains in a directory. The system lets go of it when that process ends, however."""

    def __init__(self, run: Path) -> None:
        """Raises ValueError that names the other process when there is one."""
        file = (run / FILE).open("a+", encoding="utf-8")
        try:
            alone = lock_alone(file.fileno())
        except OSError as error:
            alone = True
            logger.warning("%s cannot be locked (%s): see to it that no other run goes on in it", run, error.strerror)
        if not alone:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"{run} is in use by {holder}: wait for that run or stop it, or start a new one without resume="
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file: IO[str] = file

    def release(self) -> None:
        """For a process that lives on."""
        self._file.close()

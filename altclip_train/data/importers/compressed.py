"""Tables under gzip: a plain copy beside the import, since records are read from any place in a table."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from pathlib import Path

from altclip_train.data.importers.job import replacing


def plain(file: Path, state: Path) -> Path:
    """``file``, or its decompressed copy in ``state``, made once. Raises ValueError for damaged gzip."""
    if file.suffix.lower() != ".gz":
        return file
    place = hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]  # files of one name may lie in many folders
    copy = state / f"plain-{place}-{file.stem}"
    if not copy.is_file():
        try:
            with gzip.open(file) as compressed, replacing(copy) as temporary, open(temporary, "wb") as target:
                shutil.copyfileobj(compressed, target, 1 << 20)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is damaged: {error}; it should be gzip") from None
    return copy

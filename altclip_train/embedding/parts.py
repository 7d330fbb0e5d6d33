"""A part of a directory of embeddings: it is whole from the moment its file is there.

Part n is `part-0000n.npy` with one id a line in `part-0000n.ids.txt`, or `part-0000n.parquet` with both; a line of
`part-0000n.skipped.txt` names a picture that is damaged.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

IDS, SKIPPED = ".ids.txt", ".skipped.txt"


class Part(NamedTuple):
    """What is written at once."""

    ids: list[str]
    features: np.ndarray  # (len(ids), D)
    skipped: list[str]  # damaged pictures: a name and the reason each


def part_file(directory: Path, number: int, file_format: str) -> Path:
    """The file that makes a part whole: it is written last."""
    return directory / f"part-{number:05d}.{file_format}"


def write_part(file: Path, part: Part, dtype: str) -> None:
    """Write a part; a line break in an id becomes a space."""
    file.with_suffix(SKIPPED).unlink(missing_ok=True)  # of a part that was removed
    if part.skipped:
        _write_lines(file.with_suffix(SKIPPED), part.skipped)
    features = part.features.astype(dtype)
    if file.suffix == ".parquet":
        parquet = require_parquet()
        import pyarrow

        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), features.shape[1])
        table = pyarrow.table({"id": part.ids, "embedding": vectors})
        replace_file(file, lambda stream: parquet.write_table(table, stream))
    else:
        _write_lines(file.with_suffix(IDS), part.ids)
        replace_file(file, lambda stream: np.save(stream, features))


def count_rows(file: Path) -> int:
    if file.suffix == ".parquet":
        with require_parquet().ParquetFile(file) as parquet:
            return parquet.metadata.num_rows
    return len(np.load(file, mmap_mode="r"))


def chunks(file: Path, rows: int) -> Iterator[np.ndarray]:
    """The features of a part, so many rows at a time."""
    if file.suffix == ".parquet":
        with require_parquet().ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(rows, columns=["embedding"]):
                vectors = batch.column(0)
                yield vectors.flatten().to_numpy().reshape(len(vectors), -1)
        return
    features = np.load(file, mmap_mode="r")
    for start in range(0, len(features), rows):
        yield features[start : start + rows]


def read_ids(file: Path) -> list[str]:
    """The ids of a part."""
    if file.suffix == ".parquet":
        return require_parquet().read_table(file, columns=["id"]).column(0).to_pylist()
    return _read_lines(file.with_suffix(IDS))


def skipped_pictures(directory: Path) -> list[str]:
    """What was damaged in all parts: a name and the reason each."""
    return [line for file in sorted(directory.glob(f"part-*{SKIPPED}")) for line in _read_lines(file)]


def require_parquet() -> Any:
    """pyarrow's Parquet. Raises ModuleNotFoundError that says what to install."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError("Parquet needs pyarrow: pip install 'altclip_train[data]'") from None
    return pyarrow.parquet


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    text = "".join(line.replace("\n", " ") + "\n" for line in lines)
    replace_file(file, lambda stream: stream.write(text.encode("utf-8", "surrogateescape")))


def _read_lines(file: Path) -> list[str]:
    # Not splitlines(): ids are texts, which may hold other separators, such as U+2028.
    return file.read_bytes().decode("utf-8", "surrogateescape").split("\n")[:-1]


def replace_file(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that is whole from the moment it has its name."""
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)

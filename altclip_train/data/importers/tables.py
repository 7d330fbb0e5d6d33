"""Records of TSV, CSV, JSONL and aligned text files, from any record on.

A table tells where its records begin (one pass over the bytes), so that any process can later start at any of
them; what it reads of one record is a mapping of column to value, or the BadSample that says why not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from altclip_train.data.samples import BadSample

MAX_RECORD = 256 << 20  # bytes; what is longer has lost its line breaks, or a quote is not closed
BOM = b"\xef\xbb\xbf"


class Position(NamedTuple):
    """Where a record begins: a byte offset in each file of the table (Parquet: a row), and the line number."""

    offsets: tuple[int, ...]
    line: int


class Row(NamedTuple):
    """One record: where a person finds it, and its columns or what is wrong with it."""

    where: str
    fields: dict[str, Any] | BadSample


class Table(Protocol):
    columns: list[str] | None  # None where each record names its own

    def positions(self) -> Iterator[Position]: ...

    def rows(self, start: Position) -> Iterator[Row]: ...


class ColumnTable(Table, Protocol):
    def values(self, column: str) -> Iterator[tuple[Position, Any]]: ...


def open_table(path: Path, columns: Sequence[str] | None) -> ColumnTable:
    """The table in ``path``, by the end of its name; ``columns`` are for a TSV or CSV without a header."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from altclip_train.data.importers.parquet import ParquetTable

        return ParquetTable(path)
    if suffix in (".bz2", ".xz", ".zst"):
        raise ValueError(f"{path}: of compressed tables only .gz is read: decompress it first")
    formats = {".tsv": "tsv", ".txt": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix not in formats:
        raise ValueError(f"{path}: its name ends in none of {', '.join([*formats, '.parquet'])}: rename it or convert")
    return LineTable((path,), formats[suffix], columns)


class LineTable:
    """Lines of one TSV, CSV or JSONL file, or the aligned lines of several plain text files.

    A line ends at a newline, in CSV at one outside quotes. Blank lines of a TSV, CSV or JSONL are no records.
    """

    def __init__(self, paths: Sequence[Path], kind: str, columns: Sequence[str] | None = None) -> None:
        """``kind`` is tsv, csv, jsonl or aligned; aligned files need a column name each."""
        self.paths, self.kind = tuple(paths), kind
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in self.paths]
            self._first = Position(tuple(3 * (file.read(3) == BOM) for file in files), 1)
        self.columns = list(columns) if columns is not None else None
        if self.columns is None and kind in ("tsv", "csv"):
            self.columns = self._read_header()

    def _read_header(self) -> list[str]:
        records = self._records(self._first)
        first = next(records, None)
        if first is None:
            raise ValueError(f"{self.paths[0]} is empty")
        try:
            header = self._cells(_text(first[1][0]))
        except BadSample as error:
            raise ValueError(f"{self.paths[0]}:1: the header cannot be read: {error}") from None
        second = next(records, None)
        self._first = self._end if second is None else second[0]
        if len(set(header)) < len(header):
            raise ValueError(
                f"{self.paths[0]}: its first line {header} names a column twice; if it is no header, name the columns"
            )
        return header

    def positions(self) -> Iterator[Position]:
        """Where each record begins. Raises ValueError for aligned files of different lengths."""
        for position, _ in self._records(self._first):
            yield position

    def rows(self, start: Position) -> Iterator[Row]:
        """The records from ``start`` on."""
        for position, raws in self._records(start):
            try:
                fields: dict[str, Any] | BadSample = self._parse(raws)
            except BadSample as error:
                fields = error
            yield Row(f"{self.paths[0]}:{position.line}", fields)

    def values(self, column: str) -> Iterator[tuple[Position, Any]]:
        """Where each record begins, and what it has in one column; None where it cannot be read."""
        for (position, _), row in zip(self._records(self._first), self.rows(self._first), strict=True):
            yield position, None if isinstance(row.fields, BadSample) else row.fields.get(column)

    def _records(self, start: Position) -> Iterator[tuple[Position, list[bytes]]]:
        """Position and bytes of each record, one per file, without the line ends."""
        line, offsets = start.line, start.offsets
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in self.paths]
            for file, offset in zip(files, offsets, strict=True):
                file.seek(offset)
            while True:
                raws = [self._read_record(file, path, line) for file, path in zip(files, self.paths, strict=True)]
                if not all(raws):
                    self._check_ends(raws, line)
                    self._end = Position(offsets, line)
                    return
                if self.kind == "aligned" or raws[0].strip():
                    yield Position(offsets, line), [raw.rstrip(b"\r\n") for raw in raws]
                offsets = tuple(offset + len(raw) for offset, raw in zip(offsets, raws, strict=True))
                line += raws[0].count(b"\n")

    def _read_record(self, file: BinaryIO, path: Path, line: int) -> bytes:
        raw = file.readline(MAX_RECORD + 1)
        if self.kind == "csv" and raw.count(b'"') % 2:
            parts, size, quotes = [raw], len(raw), raw.count(b'"')
            while quotes % 2 and size <= MAX_RECORD and (more := file.readline(MAX_RECORD + 1)):
                parts.append(more)
                size, quotes = size + len(more), quotes + more.count(b'"')
            raw = b"".join(parts)
        if len(raw) > MAX_RECORD:
            hint = "a quote may not be closed" if self.kind == "csv" else "is it a text file with one record per line?"
            raise ValueError(f"{path}:{line}: a record is longer than {MAX_RECORD >> 20} MiB: {hint}")
        return raw

    def _check_ends(self, raws: Sequence[bytes], line: int) -> None:
        if any(raws):
            ended = [str(path) for path, raw in zip(self.paths, raws, strict=True) if not raw]
            longer = [str(path) for path, raw in zip(self.paths, raws, strict=True) if raw]
            raise ValueError(
                f"{', '.join(ended)} ends after {line - 1} lines, {', '.join(longer)} does not: "
                "lines of parallel files belong together, so give files of equal length"
            )

    def _parse(self, raws: Sequence[bytes]) -> dict[str, Any]:
        texts = [_text(raw) for raw in raws]
        if self.kind == "jsonl":
            return _json_object(texts[0])
        assert self.columns is not None
        cells = texts if self.kind == "aligned" else self._cells(texts[0])
        if len(cells) != len(self.columns):
            raise BadSample("columns", f"{len(cells)} columns, expected {len(self.columns)}: {self.columns}")
        return dict(zip(self.columns, cells, strict=True))

    def _cells(self, text: str) -> list[str]:
        if self.kind == "tsv":
            return text.split("\t")
        try:
            return next(csv.reader(_lines_of(text), strict=True))
        except csv.Error as error:
            raise BadSample("csv", str(error)) from None


def _lines_of(text: str) -> Iterable[str]:
    # Not splitlines(), which also breaks at separators that may stand in a text, such as U+2028.
    return (line + "\n" for line in text.split("\n"))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadSample("encoding", f"not UTF-8: {error}") from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample("json", str(error)) from None
    if not isinstance(value, dict):
        raise BadSample("json", f"a {type(value).__name__}, expected an object")
    return value

"""Records of a Parquet file, from any row on, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from altclip_train.data.importers.tables import Position, Row

BATCH_ROWS = 64  # rows may hold pictures


class ParquetTable:
    """Rows of one Parquet file; a position is a row number."""

    def __init__(self, path: Path) -> None:
        """Raises ModuleNotFoundError without pyarrow, ValueError for a file that is no Parquet."""
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{path}: reading Parquet needs pyarrow: pip install 'altclip_train[data]'"
            ) from None
        self.path = path
        try:
            with parquet.ParquetFile(path) as file:
                self.columns: list[str] | None = file.schema_arrow.names
                metadata = file.metadata
        except arrow.ArrowInvalid as error:
            raise ValueError(f"{path} is no readable Parquet file: {error}") from None
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(accumulate(sizes, initial=0))  # first row of each row group

    def positions(self) -> Iterator[Position]:
        for row in range(self._starts[-1]):
            yield Position((row,), row + 1)

    def values(self, column: str) -> Iterator[tuple[Position, Any]]:
        """The position of each record, and what it has in one column; None where that may be a whole picture."""
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(self.path) as file:
            kind = str(file.schema_arrow.field(column).type)
            if "binary" in kind or "struct" in kind:
                yield from ((position, None) for position in self.positions())
                return
            names = (name for batch in file.iter_batches(columns=[column]) for name in batch.column(0).to_pylist())
            yield from zip(self.positions(), names, strict=True)

    def rows(self, start: Position) -> Iterator[Row]:
        """The records from ``start`` on; only row groups from there on are read."""
        import pyarrow.parquet as parquet

        first = start.offsets[0]
        groups = [group for group, end in enumerate(self._starts[1:]) if end > first]
        if not groups:
            return
        row = self._starts[groups[0]]
        with parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups):
                skipped = min(max(first - row, 0), batch.num_rows)
                for number, fields in enumerate(batch.slice(skipped).to_pylist(), start=row + skipped + 1):
                    yield Row(f"{self.path} row {number}", fields)
                row += batch.num_rows

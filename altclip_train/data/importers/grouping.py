"""Rows of an image-text table that follow each other with the same picture, taken as one record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from altclip_train.data.importers.tables import ColumnTable, Position, Row


class PictureTable:
    """A record for each run of rows that name one picture, with the texts of all of them."""

    def __init__(self, table: ColumnTable, image: str, texts: Sequence[str]) -> None:
        """``image`` is the column with the name of the picture, ``texts`` are those with its texts."""
        self.table, self.image, self.texts = table, image, texts
        self.columns = table.columns

    def positions(self) -> Iterator[Position]:
        for _, run in groupby(self.table.values(self.image), key=lambda item: _identity(item[1])):
            yield next(run)[0]

    def rows(self, start: Position) -> Iterator[Row]:
        for _, run in groupby(self.table.rows(start), key=lambda row: _identity(self._picture(row))):
            first, *others = run
            yield self._together(first, others) if others else first

    def _picture(self, row: Row) -> Any:
        return row.fields.get(self.image) if isinstance(row.fields, dict) else None

    def _together(self, first: Row, others: Sequence[Row]) -> Row:
        assert isinstance(first.fields, dict)
        rows = [row.fields for row in (first, *others) if isinstance(row.fields, dict)]
        found = {text: [fields[text] for fields in rows if text in fields] for text in self.texts}
        texts = {text: [one for value in values for one in _as_list(value)] for text, values in found.items() if values}
        return Row(first.where, {**first.fields, **texts})


def _identity(picture: Any) -> Any:
    """Equal for the same name; a picture that has no name is like no other."""
    return picture if isinstance(picture, str) and picture else object()


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

"""From the files of an import to its records, and from one record to the captions and picture of a sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from altclip_train.data.importers.annotations import caption_records, find_picture
from altclip_train.data.importers.chinese_clip import PictureTexts, decode_base64, index_texts
from altclip_train.data.importers.compressed import plain
from altclip_train.data.importers.grouping import PictureTable
from altclip_train.data.importers.job import ANNOTATION_KINDS, ImportJob, replacing
from altclip_train.data.importers.tables import LineTable, Position, Row, Table, open_table
from altclip_train.data.samples import BadSample, decode_captions, normalize_language


class LeftOut(BadSample):
    """A sound record that a filter leaves out."""


class Sample(NamedTuple):
    captions: dict[str, list[str]]
    picture: bytes | None


class Cut(NamedTuple):
    """Where the records of one shard begin."""

    table: int
    position: Position


class Records:
    """The records of an import, numbered through all its files."""

    def __init__(self, job: ImportJob) -> None:
        self.job = job
        self.tables = _tables(job)
        self.columns = dict(job.texts)  # by language
        if job.kind == "moses":
            self.columns = {language: language for language in self.tables[0].columns or []}
        self.texts: PictureTexts | None = None
        if job.kind == "chinese-clip":
            self.texts = PictureTexts(job.files()[1::2], job.state / "texts.npy")

    def cuts(self) -> tuple[int, list[Cut]]:
        """Number of records, and the cut before every ``samples_per_shard``-th; made once and kept on disk."""
        file, step = self.job.state / "cuts.json", self.job.samples_per_shard
        if not file.is_file():
            count, cuts = 0, []
            for number, table in enumerate(self.tables):
                for position in table.positions():
                    if count % step == 0:
                        cuts.append([number, *position])
                    count += 1
            with replacing(file) as temporary:
                temporary.write_text(json.dumps({"records": count, "cuts": cuts}))
        made = json.loads(file.read_text())
        cuts = [Cut(table, Position(tuple(offsets), line)) for table, offsets, line in made["cuts"]]
        return made["records"], cuts

    def rows(self, cut: Cut) -> Iterator[Row]:
        """The records of the shard that begins at ``cut``."""
        return islice(self._rows_from(cut), self.job.samples_per_shard)

    def _rows_from(self, cut: Cut) -> Iterator[Row]:
        yield from self.tables[cut.table].rows(cut.position)
        for table in self.tables[cut.table + 1 :]:
            first = next(iter(table.positions()), None)
            if first is not None:
                yield from table.rows(first)

    def where(self, row: Row) -> str:
        """File and line of a record, for a person."""
        if self.job.kind in ANNOTATION_KINDS and isinstance(row.fields, dict):
            return row.fields["where"]
        return row.where

    def sample(self, row: Row, removed: Counter[str]) -> Sample:
        """The sample of a record, as its filters leave it; captions left out of it are counted in ``removed``.

        Raises LeftOut for a record that is left out, BadSample for one that cannot be read.
        """
        if isinstance(row.fields, BadSample):
            raise row.fields
        captions = _checked(self._texts(row.fields))
        if self.job.kind in ("parallel", "moses"):
            return Sample(self._whole(captions), None)
        return Sample(self._filtered(captions, removed), self._picture(row.fields))

    def _texts(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Texts by language, as they stand in the record."""
        if self.texts is not None:
            return {self.job.language: self.texts.of(fields["id"])}
        if self.job.kind in ANNOTATION_KINDS:
            return fields["texts"]
        missing = [column for column in self.columns.values() if column not in fields]
        if missing:
            raise BadSample("columns", f"no {missing[0]!r} among {', '.join(fields)}")
        return {language: fields[column] for language, column in self.columns.items()}

    def _whole(self, captions: dict[str, list[str]]) -> dict[str, list[str]]:
        """Captions of parallel text: all languages, all sound."""
        for language in self.columns:
            texts = captions.get(language, [])
            if not texts:
                raise LeftOut("text_empty", language)
            if len(texts) > 1:
                raise BadSample("caption_type", f"{language} holds {len(texts)} texts, expected one")
            reason = self.job.filters.wrong_with(language, texts[0])
            if reason is not None:
                raise LeftOut(reason, texts[0][:80])
        if self.job.filters.ratio_exceeded([texts[0] for texts in captions.values()]):
            raise LeftOut("ratio", " | ".join(texts[0][:40] for texts in captions.values()))
        return captions

    def _filtered(self, captions: dict[str, list[str]], removed: Counter[str]) -> dict[str, list[str]]:
        """Captions of a picture that pass the filters, at least one."""
        kept: dict[str, list[str]] = {}
        reason = "text_empty"
        for language, texts in captions.items():
            for text in texts:
                wrong = self.job.filters.wrong_with(language, text)
                if self.job.filters.drop_duplicates and text in kept.get(language, []):
                    wrong = "duplicate"
                if wrong is None:
                    kept.setdefault(language, []).append(text)
                else:
                    reason = wrong
                    removed[wrong] += 1
        if not kept:
            raise LeftOut(reason)
        return kept

    def _picture(self, fields: dict[str, Any]) -> bytes:
        if self.texts is not None:
            return decode_base64(fields["picture"])
        name = fields.get("picture" if self.job.kind in ANNOTATION_KINDS else self.job.image)
        if isinstance(name, dict):  # how the `datasets` library stores a picture in Parquet
            name = name.get("bytes") or name.get("path")
        if isinstance(name, bytes):
            return name
        if not isinstance(name, str) or not name:
            raise BadSample("columns", f"no picture in {self.job.image!r}; the record has {', '.join(fields)}")
        folder = self.job.pictures if self.job.pictures is not None else Path(self.job.inputs[0]).parent
        return find_picture(folder, name).read_bytes()


def _checked(texts: dict[str, Any]) -> dict[str, list[str]]:
    """Texts as training will read them. Raises BadSample for what it would refuse."""
    present = {}
    for language, value in texts.items():
        values = value if isinstance(value, list) else [value]
        values = [text for text in values if text is not None and (not isinstance(text, str) or text.strip())]
        if values:
            present[language] = values
    if not present:
        raise LeftOut("text_empty")
    return decode_captions({"json": json.dumps(present).encode()}, default_language=None)


def prepare(job: ImportJob) -> None:
    """Write what the records of some kinds are read from: captions grouped by picture."""
    if job.kind in ANNOTATION_KINDS and not (job.state / "records.jsonl").is_file():
        with (
            replacing(job.state / "records.jsonl") as temporary,
            open(temporary, "w", encoding="utf-8", newline="\n") as file,
        ):
            for record in caption_records(job.kind, job.files(), language=job.language, ids=job.ids):
                file.write(json.dumps(record) + "\n")
    if job.kind == "chinese-clip" and not (job.state / "texts.npy").is_file():
        with replacing(job.state / "texts.npy") as temporary:
            index_texts(job.files()[1::2], temporary)


def _tables(job: ImportJob) -> Sequence[Table]:
    if job.kind in ANNOTATION_KINDS:
        return [LineTable([job.state / "records.jsonl"], "jsonl")]
    if job.kind == "chinese-clip":
        return [LineTable([file], "tsv", ["id", "picture"]) for file in job.files()[::2]]
    if job.kind == "moses":
        return _moses_tables(job)
    tables = [open_table(plain(file, job.state), job.columns) for file in job.files()]
    wanted = [*job.texts.values(), *([job.image] if job.kind == "image-text" else [])]
    for file, table in zip(job.files(), tables, strict=True):
        missing = [column for column in wanted if table.columns is not None and column not in table.columns]
        if missing:
            raise ValueError(
                f"{file} has no column {missing[0]!r}: it has {', '.join(map(repr, table.columns or []))[:300]}. Name "
                "columns by --text LANGUAGE=COLUMN and --image COLUMN; if there is no header, give --columns A,B,…"
            )
    if job.kind == "image-text":
        return [PictureTable(table, job.image, list(job.texts.values())) for table in tables]
    return tables


def _moses_tables(job: ImportJob) -> Sequence[Table]:
    """Files that differ only in the language at the end of their names, a table for each stem."""
    groups: dict[Path, dict[str, Path]] = {}
    for file in job.files():
        named = file.with_suffix("") if file.suffix.lower() == ".gz" else file
        language = normalize_language(named.suffix[1:])
        if language is None:
            raise ValueError(f"{file}: expected files whose names end in a language, such as corpus.en and corpus.zh")
        groups.setdefault(named.with_suffix(""), {})[language] = plain(file, job.state)
    expected = set(next(iter(groups.values()), {}))
    for stem, group in groups.items():
        if len(group) < 2 or set(group) != expected:
            raise ValueError(f"{stem}: found {', '.join(group)}; each stem needs at least two, the same for all stems")
    return [LineTable(list(group.values()), "aligned", list(group)) for group in groups.values()]

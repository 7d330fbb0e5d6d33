"""What ``altclip data import`` does with its options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altclip_train.data.importers.filters import Filters
from altclip_train.data.importers.job import KINDS, ImportJob
from altclip_train.data.importers.run import REPORT, run_import
from altclip_train.data.parts import part_of_work
from altclip_train.data.processes import available_cpus
from altclip_train.data.sources import language_code
from altclip_train.data.verification import verify

AS_THEY_ARE = ("clip-benchmark", "img2dataset")


def run(options: argparse.Namespace) -> None:
    """Import and print the report; of folders of shards, verify them where they are."""
    processes = options.processes or available_cpus()
    part = part_of_work(options.part)
    if options.kind in AS_THEY_ARE:
        print(f"{options.kind}: these are shards already and are read as they are: nothing is copied, only verified")
        verification = verify(_shards(options.inputs), part=part, processes=processes, language=options.language)
        print(*verification.lines(), sep="\n")
        raise SystemExit(1 if verification.damage else 0)
    if options.kind not in KINDS:
        raise ValueError(f"kind {options.kind!r}: expected one of {', '.join((*KINDS, *AS_THEY_ARE))}")
    if options.output is None:
        raise ValueError("give --output, the directory to write the shards to")
    job = job_of(options)
    print(*report_lines(run_import(job, processes=processes, part=part)), sep="\n")
    print(f"shards and {REPORT}: {job.output}")


def job_of(options: argparse.Namespace) -> ImportJob:
    """The import that the options ask for. Raises ValueError, FileNotFoundError."""
    language = options.language or ("en" if options.kind == "coco" else "zh")
    return ImportJob(
        kind=options.kind,
        inputs=options.inputs,
        output=Path(options.output),
        texts=_columns_by_language(options.text),
        columns=None if options.columns is None else options.columns.split(","),
        image=options.image,
        pictures=None if options.pictures is None else Path(options.pictures),
        language=language_code(language),
        split=options.split,
        ids=None if options.ids is None else Path(options.ids),
        samples_per_shard=options.samples_per_shard,
        filters=Filters(
            min_chars=options.min_chars,
            max_chars=options.max_chars,
            max_ratio=options.max_ratio,
            check_script=options.check_script,
            drop_duplicates=options.drop_duplicates,
        ),
        exclude_pictures=options.exclude_pictures,
        skip_errors=options.on_error == "skip",
    )


def _columns_by_language(texts: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for text in texts:
        code, given, column = text.partition("=")
        language = language_code(code)
        if language in columns:
            raise ValueError(f"--text {text}: {language} is given twice")
        columns[language] = column if given else code
    return columns


def _shards(inputs: Sequence[str]) -> list[str | Path]:
    """Tar files in folders at any depth, since CLIP_benchmark has a folder for each split; other inputs as given."""
    shards: list[str | Path] = []
    for name in inputs:
        found = sorted(Path(name).rglob("*.tar")) if Path(name).is_dir() else [name]
        if not found:
            raise FileNotFoundError(f"{name} holds no tar files")
        shards += found
    return shards


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report of an import for a person."""
    left_out, errors = report["left_out"], report["errors"]
    lines = [
        f"{report['records']:,} records make {report['shards']:,} shards; {report['shards_written']:,} are there",
        f"of {report['read']:,} records in them: {report['written']:,} written with {report['texts']:,} texts, "
        f"{sum(left_out.values()):,} left out, {sum(errors.values()):,} unreadable",
    ]
    for title, reasons in (("left out", left_out), ("unreadable", errors)):
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            lines.append(f"  {title}: {count:,} {reason}, such as {report['examples'][reason]}")
    for reason, count in sorted(report["texts_left_out"].items(), key=lambda item: -item[1]):
        lines.append(f"  captions left out of samples that were written: {count:,} {reason}")
    return lines

"""``altclip data``: prepare shards and look at them. What an action needs is imported when it runs: --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

Tools = argparse._SubParsersAction


def add(tools: Tools) -> None:
    """Add ``data`` and its actions to the tools of ``altclip``."""
    actions = tools.add_parser("data", help="prepare and look at data").add_subparsers(required=True, metavar="ACTION")
    _add_starter(actions)
    _add_index(actions)
    _add_import(actions)
    _add_inspect(actions)
    _add_verify(actions)
    _add_bench(actions)
    _add_fetch_help(actions)


def _add_starter(actions: Tools) -> None:
    tool = actions.add_parser("starter", help="build the starter data from installed packages, without a network")
    tool.add_argument("--root", default="data/starter", help="where to build it (default: %(default)s)")
    tool.add_argument("--rebuild", action="store_true", help="build again although it is there")
    tool.set_defaults(run=_starter)


def _add_index(actions: Tools) -> None:
    index = actions.add_parser(
        "index",
        help="write an index beside every shard and report damage",
        description="Write an index beside every shard, near or far, and report what the shards hold and have lost. "
        "Shards whose index is there and of their present state are skipped, so that it can be stopped and started "
        "again. Under torchrun or in a SLURM array each process takes its part. Exits with 1 when a shard is damaged.",
    )
    index.add_argument("urls", nargs="+", metavar="URLS", help="paths or urls, with braces and globs in quotes")
    index.add_argument("--manifest", metavar="FILE", help="write what each shard holds, with checksums, as JSON")
    index.add_argument("--part", metavar="I/N", help="index only part I of N, I from 0")
    index.add_argument("--processes", type=int, metavar="N", help="default: one for each CPU")
    index.add_argument("--rebuild", action="store_true", help="build every index again, a stale remote one too")
    index.add_argument("--allow-damaged", action="store_true", help="exit with 0 although shards have lost something")
    index.add_argument("--cache-dir", metavar="DIR", help="for copies of remote shards (default: as in training)")
    index.add_argument("--cache-bytes", type=int, metavar="N", help="of such copies")
    index.set_defaults(run=_index)


def _add_import(actions: Tools) -> None:
    tool = actions.add_parser(
        "import",
        help="write shards from the files you have",
        description="Write WebDataset shards from the files you have. Shards that are there are not made again, so it "
        "can be stopped and started again; under torchrun or in a SLURM array each process makes its part. What became "
        "of every record is printed, and written to import.json beside the shards.",
        epilog="kinds: parallel (TSV, CSV, JSONL, Parquet), moses (corpus.en corpus.zh), image-text (the same tables "
        "and a folder of pictures), coco (captions_*.json), flickr30k-cn and coco-cn (caption lists), chinese-clip "
        "(folders with SPLIT_imgs.tsv and SPLIT_texts.jsonl). clip-benchmark and img2dataset folders are shards "
        "already: nothing is copied, they are verified where they are.",
    )
    tool.add_argument("kind", metavar="KIND", help="what the input is, see below")
    tool.add_argument("inputs", nargs="+", metavar="INPUT")
    tool.add_argument("--output", metavar="DIR", help="where to write the shards")
    tool.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="LANG[=COLUMN]",
        help="a language and the column with its texts; once for each",
    )
    tool.add_argument("--columns", metavar="A,B,…", help="names of the columns of a TSV or CSV without a header")
    tool.add_argument("--image", default="image", metavar="COLUMN", help="column of the pictures' names or bytes")
    tool.add_argument("--pictures", metavar="DIR", help="folder of the pictures (image-text: default, the input's)")
    tool.add_argument(
        "--language", metavar="LANG", help="of captions whose format does not say (default: zh; coco: en)"
    )
    tool.add_argument("--split", default="train", help="of chinese-clip (default: %(default)s)")
    tool.add_argument("--ids", metavar="FILE", help="names of the pictures to keep, of coco, flickr30k-cn, coco-cn")
    tool.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="default: %(default)s")
    tool.add_argument("--drop-duplicates", action="store_true", help="keep the first of equal records; reads all twice")
    tool.add_argument("--check-script", action="store_true", help="leave out texts not written as their language is")
    tool.add_argument("--min-chars", type=int, default=1, metavar="N")
    tool.add_argument("--max-chars", type=int, metavar="N")
    tool.add_argument(
        "--max-ratio", type=float, metavar="X", help="of the bytes of parallel texts, longest to shortest"
    )
    tool.add_argument(
        "--exclude-pictures",
        action="append",
        default=[],
        metavar="DIR_OR_SHARDS",
        help="leave out pictures whose pixels are there, such as an evaluation set's",
    )
    tool.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="default: %(default)s")
    tool.add_argument("--part", metavar="I/N", help="write only part I of N, I from 0")
    tool.add_argument("--processes", type=int, metavar="N", help="default: one for each CPU")
    tool.set_defaults(run=_import)


def _add_inspect(actions: Tools) -> None:
    tool = actions.add_parser(
        "inspect",
        help="what shards hold: counts, languages, sizes, lengths, damage, a contact sheet",
        description="Say what shards hold. Counts of shards and samples are exact; everything else is of --samples "
        "samples, spread evenly over all.",
    )
    tool.add_argument("urls", nargs="+", metavar="URLS", help="paths or urls, with braces and globs in quotes")
    tool.add_argument(
        "--samples", type=int, default=10_000, metavar="N", help="to look at; 0: all (default: %(default)s)"
    )
    tool.add_argument("--language", metavar="LANG", help="of plain .txt captions")
    tool.add_argument("--tokenizer", metavar="DIR", help="count tokens with the tokenizer of a model directory")
    tool.add_argument("--max-length", type=int, default=77, metavar="N", help="tokens of a text (default: %(default)s)")
    tool.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet")
    tool.add_argument("--sheet-samples", type=int, default=24, metavar="N", help="on the sheet (default: %(default)s)")
    tool.add_argument("--font", metavar="FILE", help="for captions on the sheet, where the fonts found lack letters")
    tool.add_argument("--json", metavar="FILE", help="write everything as JSON")
    tool.add_argument("--processes", type=int, metavar="N", help="default: one for each CPU")
    tool.set_defaults(run=_inspect)


def _add_verify(actions: Tools) -> None:
    tool = actions.add_parser(
        "verify",
        help="read and decode every sample, list the damage",
        description="Read and decode every sample of shards and list what is damaged. Exits with 1 when anything is.",
    )
    tool.add_argument("urls", nargs="+", metavar="URLS", help="paths or urls, with braces and globs in quotes")
    tool.add_argument("--language", metavar="LANG", help="of plain .txt captions")
    tool.add_argument("--json", metavar="FILE", help="write everything as JSON")
    tool.add_argument("--part", metavar="I/N", help="verify only the shards of part I of N, I from 0")
    tool.add_argument("--processes", type=int, metavar="N", help="default: one for each CPU")
    tool.set_defaults(run=_verify)


def _add_bench(actions: Tools) -> None:
    tool = actions.add_parser(
        "bench",
        help="how fast the loader is here, and what limits it",
        description="Measure the training loader on your shards, and its stages one by one.",
    )
    tool.add_argument("urls", nargs="+", metavar="URLS", help="paths or urls, with braces and globs in quotes")
    tool.add_argument("--tokenizer", required=True, metavar="DIR", help="a directory with a tokenizer")
    tool.add_argument("--language", metavar="LANG", help="of plain .txt captions")
    tool.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="loader processes to try (default: 0 1 2 4 …)"
    )
    tool.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of each measurement (default: %(default)s)"
    )
    tool.add_argument("--size", type=int, default=224, help="of the pictures for the model (default: %(default)s)")
    tool.add_argument("--max-length", type=int, default=77, metavar="N", help="tokens of a text (default: %(default)s)")
    tool.add_argument("--json", metavar="FILE", help="write everything as JSON")
    tool.set_defaults(run=_bench)


def _add_fetch_help(actions: Tools) -> None:
    tool = actions.add_parser(
        "fetch-help",
        help="where a benchmark comes from, what it must hold, and whether a folder holds it",
        description="Without NAME list all benchmarks. With NAME say where it comes from, its licence, protocols, "
        "files and traps. With a folder verify what lies there: files, counts, every picture. Exits with 1 when no "
        "protocol fits. Nothing is fetched.",
    )
    tool.add_argument("name", nargs="?", metavar="NAME")
    tool.add_argument("root", nargs="?", metavar="DIR", help="verify this folder; one of shards may be remote")
    tool.add_argument(
        "--language", nargs="+", metavar="LANG", help="verify these (default: the first of each protocol)"
    )
    tool.add_argument("--prompts", nargs="+", metavar="PATH", help="files with class names and templates")
    tool.add_argument("--pictures", metavar="DIR", help="folder of the pictures, where it is not below DIR")
    tool.set_defaults(run=_fetch_help)


def _starter(options: argparse.Namespace) -> None:
    from altclip_train.data.starter import build_starter, ensure_starter

    root = build_starter(options.root) if options.rebuild else ensure_starter(options.root)
    print(f"starter data: {root}")


def _index(options: argparse.Namespace) -> None:
    from altclip_train.data.cache import ShardCache
    from altclip_train.data.indexing import IndexJob, index_sources, write_manifest
    from altclip_train.data.parts import part_of_work

    cache = ShardCache(options.cache_dir, options.cache_bytes)
    job = IndexJob(cache=cache, rebuild=options.rebuild, hashed=options.manifest is not None)
    part = part_of_work(options.part)
    reports = index_sources(options.urls, job, part=part, processes=options.processes)
    for report in reports:
        print(*report.lines(), sep="\n")
    if options.manifest is not None:
        print(f"written to {write_manifest(Path(options.manifest), reports, part)}")
    damaged = any(report.damaged for report in reports) and not options.allow_damaged
    if damaged or any(report.broken for report in reports):
        raise SystemExit(1)


def _import(options: argparse.Namespace) -> None:
    from altclip_train.data.importers.command import run

    run(options)


def _inspect(options: argparse.Namespace) -> None:
    from altclip_train.data.inspection import run

    run(options)


def _verify(options: argparse.Namespace) -> None:
    from altclip_train.data.verification import run

    run(options)


def _bench(options: argparse.Namespace) -> None:
    from altclip_train.data.loader_bench import run

    run(options)


def _fetch_help(options: argparse.Namespace) -> None:
    from altclip_train.evaluation.fetch_help import run

    run(options)

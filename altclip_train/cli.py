"""The ``altclip`` command: everyday tools beside training and evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from altclip_train.errors import short_errors


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with short_errors():
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="altclip", description="Tools of altclip_train.")
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    data = tools.add_parser("data", help="prepare and look at data").add_subparsers(required=True, metavar="ACTION")
    starter = data.add_parser("starter", help="build the starter data from installed packages, without a network")
    starter.add_argument("--root", default="data/starter", help="where to build it (default: %(default)s)")
    starter.add_argument("--rebuild", action="store_true", help="build again although it is there")
    starter.set_defaults(run=_starter)
    _add_index(data)
    _add_import(data)
    _add_inspect(data)
    _add_verify(data)
    _add_bench(data)
    _add_export(tools)
    _add_trim(tools)
    return parser


def _add_index(data: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    index = data.add_parser(
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


def _add_import(data: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tool = data.add_parser(
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


def _add_inspect(data: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tool = data.add_parser(
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


def _add_verify(data: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tool = data.add_parser(
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


def _add_bench(data: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tool = data.add_parser(
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


def _add_export(tools: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "write a model for other software: the published layout, ONNX, open_clip"
    export = tools.add_parser(
        "export",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="formats: altclip, the layout that transformers reads; onnx, both towers with their projections, "
        "checked against torch before anything is written; open_clip, for models whose text tower is CLIP's.",
    )
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a model directory, a run, or RUN/checkpoints/X.ckpt")
    export.add_argument("directory", metavar="DIR", help="where to write; must not hold anything yet")
    export.add_argument(
        "--format", choices=("altclip", "onnx", "open_clip"), default="altclip", help="default: %(default)s"
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the weights (default: %(default)s)",
    )
    export.set_defaults(run=_export)


def _add_trim(tools: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "write an AltCLIP with only the rows of its vocabulary that your texts need"
    trim = tools.add_parser(
        "trim",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Nothing is written unless those texts keep their token ids, "
        "renumbered, and their features.",
        epilog="texts: .txt (one per line), .tsv (one per cell), .jsonl with {language: text} objects, each also as "
        ".gz, and WebDataset .tar shards with captions; globs and braces work.",
    )
    trim.add_argument("checkpoint", metavar="CHECKPOINT", help="an AltCLIP model directory, or a run")
    trim.add_argument("directory", metavar="DIR", help="where to write; must not hold anything yet")
    trim.add_argument("--texts", nargs="+", required=True, metavar="FILE", help="texts that must stay as they are")
    trim.add_argument("--languages", nargs="+", metavar="CODE", help="captions that count, such as: en zh")
    trim.add_argument(
        "--min-count",
        type=int,
        default=1,
        metavar="N",
        help="drop pieces of several characters that are used less often; texts with such a piece change, and are "
        "counted (default: %(default)s)",
    )
    trim.add_argument(
        "--used-characters",
        action="store_true",
        help="drop single characters that the texts do not use; in new texts they become <unk>",
    )
    trim.add_argument(
        "--sample",
        type=int,
        default=1000,
        metavar="N",
        help="compare the features of at most N different texts (default: %(default)s); ids are compared on all",
    )
    trim.add_argument("--check", nargs="+", default=(), metavar="FILE", help="held-out texts to report the effect on")
    trim.set_defaults(run=_trim)


def _starter(options: argparse.Namespace) -> None:
    # Imported here, so that --help stays quick.
    from altclip_train.data.starter import build_starter, ensure_starter

    root = build_starter(options.root) if options.rebuild else ensure_starter(options.root)
    print(f"starter data: {root}")


def _index(options: argparse.Namespace) -> None:
    from pathlib import Path

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


def _export(options: argparse.Namespace) -> None:
    from altclip_train.export import export

    directory = export(options.checkpoint, options.directory, format=options.format, dtype=options.dtype)
    print(f"written to {directory}")


def _trim(options: argparse.Namespace) -> None:
    from altclip_train.trimming import trim

    report = trim(
        options.checkpoint,
        options.directory,
        options.texts,
        languages=options.languages,
        min_count=options.min_count,
        characters=not options.used_characters,
        sample=options.sample,
        check=options.check,
    )
    print(*report.lines(), f"written to {options.directory}", sep="\n")


if __name__ == "__main__":
    main()

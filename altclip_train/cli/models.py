"""``altclip export``, ``trim`` and ``compare``: models for other software, smaller ones, and which is better."""

from __future__ import annotations

import argparse

Tools = argparse._SubParsersAction


def add(tools: Tools) -> None:
    """Add ``export``, ``trim`` and ``compare`` to the tools of ``altclip``."""
    _add_export(tools)
    _add_trim(tools)
    _add_compare(tools)


def _add_export(tools: Tools) -> None:
    summary = "write a model for other software: the published layout, ONNX, open_clip"
    export = tools.add_parser(
        "export",
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="formats: altclip, the layout that transformers reads; onnx, both towers with their projections, "
        "checked against torch before anything is written; open_clip, for models whose text tower is CLIP's.",
    )
    export.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a model directory, a hub id, a run, or RUN/checkpoints/X.ckpt"
    )
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


def _add_trim(tools: Tools) -> None:
    summary = "write an AltCLIP with only the rows of its vocabulary that your texts need"
    trim = tools.add_parser(
        "trim",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Nothing is written unless those texts keep their token ids, "
        "renumbered, and their features.",
        epilog="texts: .txt (one per line), .tsv (one per cell), .jsonl with {language: text} objects, each also as "
        ".gz, and WebDataset .tar shards with captions; globs and braces work.",
    )
    trim.add_argument("checkpoint", metavar="CHECKPOINT", help="an AltCLIP model directory, a hub id, or a run")
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


def _add_compare(tools: Tools) -> None:
    summary = "compare two evaluated models: what differs, whether by chance, which samples changed"
    tool = tools.add_parser(
        "compare",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Intervals and p are of a paired bootstrap over pictures. "
        "Results on other data or by another protocol are refused.",
    )
    tool.add_argument("first", metavar="FIRST", help="a directory that python -m altclip_train.evaluate wrote")
    tool.add_argument("second", metavar="SECOND", help="the same of another model")
    tool.add_argument("--samples", type=int, default=5, metavar="N", help="changed ones shown (default: %(default)s)")
    tool.add_argument("--json", metavar="FILE", help="write everything, with all changed samples")
    tool.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from rich.console import Console

    from altclip_train.evaluation import compare, read_results
    from altclip_train.evaluation.comparison import print_comparison
    from altclip_train.files import written_whole

    (first, ours), (second, theirs) = read_results(options.first), read_results(options.second)
    comparisons = compare(ours, theirs)
    console = Console()
    console.print(
        f"first: {first} ({options.first})\nsecond: {second} ({options.second})", markup=False, soft_wrap=True
    )
    for comparison in comparisons:
        print_comparison(console, comparison, samples=options.samples)
    if options.json:
        document = {"first": first, "second": second, "comparisons": [one.to_dict() for one in comparisons]}
        with written_whole(Path(options.json)) as partial:
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


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

"""``altclip embed`` and ``altclip search``: what is frozen computed once, and looked up."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from altclip_train.heap import keep_freed_memory

Tools = argparse._SubParsersAction


def add(tools: Tools) -> None:
    """Add ``embed`` and ``search`` to the tools of ``altclip``."""
    _add_embed(tools)
    _add_search(tools)


def _add_embed(tools: Tools) -> None:
    summary = "compute embeddings once: beside shards for training, or in a directory with ids"
    embed = tools.add_parser(
        "embed",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". What is there is not computed again, so that it can be "
        "stopped and started again at any time. Under torchrun or in a SLURM array each process takes its part.",
        epilog="altclip embed CLIP 'shards/*.tar' --for teacher: what the CLIP's text tower gives for the English of "
        "parallel text. altclip embed MODEL 'shards/*.tar' --for contrastive: features of pictures, as evaluation "
        "sees them. altclip embed MODEL --texts FILE… --output DIR, or --images DIR_OR_SHARDS… --output DIR: "
        "normalised features with ids, for altclip search and other software.",
    )
    embed.add_argument("model", metavar="MODEL", help="a model directory: CLIP or AltCLIP, for teacher a CLIP")
    embed.add_argument("urls", nargs="*", metavar="URLS", help="shards, with braces and globs in quotes")
    embed.add_argument("--for", dest="stage", choices=("teacher", "contrastive"), help="the stage that reads them")
    embed.add_argument("--texts", nargs="+", metavar="FILE", help=".txt, .tsv, .jsonl, also as .gz, or shards")
    embed.add_argument("--images", nargs="+", metavar="DIR_OR_SHARDS", help="folders of pictures, pictures, shards")
    embed.add_argument("--output", metavar="DIR", help="where features of --texts and --images go")
    embed.add_argument("--format", choices=("npy", "parquet"), default="npy", help="there (default: %(default)s)")
    embed.add_argument("--directory", metavar="DIR", help="for sidecars, where they cannot lie beside their shards")
    embed.add_argument("--language", default="en", metavar="LANG", help="of the teacher's texts (default: %(default)s)")
    embed.add_argument(
        "--max-length", type=int, default=77, metavar="N", help="tokens of a text (default: %(default)s)"
    )
    embed.add_argument(
        "--normalize-full-width", action="store_true", help="as data.normalize_full_width of the run that reads them"
    )
    embed.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of what is kept (default: %(default)s)"
    )
    embed.add_argument("--part", metavar="I/N", help="embed only part I of N, I from 0")
    add_device(embed)
    embed.set_defaults(run=_embed)


def _add_search(tools: Tools) -> None:
    search = tools.add_parser(
        "search",
        help="the nearest of embedded texts or pictures",
        description="Search what altclip embed --output wrote, exactly. Pictures may be searched with any model whose "
        "image tower is the one that embedded them.",
    )
    search.add_argument("index", metavar="INDEX", help="a directory that altclip embed --output wrote")
    search.add_argument("model", metavar="MODEL", help="a model directory: CLIP or AltCLIP")
    search.add_argument("query", nargs="?", metavar="TEXT")
    search.add_argument("--image", metavar="FILE", help="search for a picture instead")
    search.add_argument("--top", type=int, default=10, metavar="K", help="default: %(default)s")
    search.add_argument("--json", action="store_true", help="print JSON")
    add_device(search)
    search.set_defaults(run=_search)


def add_device(tool: argparse.ArgumentParser) -> None:
    """The option that `device_of` reads."""
    tool.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (default: the process's GPU, else cpu)")


def _embed(options: argparse.Namespace) -> None:
    asked = [name for name in ("stage", "texts", "images") if getattr(options, name) is not None]
    if (
        len(asked) != 1
        or bool(options.urls) != (options.stage is not None)
        or bool(options.output) == bool(options.urls)
    ):
        raise ValueError("give either URLS with --for teacher or contrastive, or --texts or --images with --output DIR")
    _embed_shards(options) if options.urls else _embed_records(options)


def _embed_shards(options: argparse.Namespace) -> None:
    from altclip_train.data.parts import part_of_work
    from altclip_train.embedding.shards import Job, embed_contrastive, embed_teacher

    job = Job(
        urls=options.urls,
        part=part_of_work(options.part),
        dtype=options.dtype,
        directory=options.directory,
        device=_device_to_embed_on(options.device),
    )
    if options.stage == "contrastive":
        coverage = embed_contrastive(options.model, job)
    else:
        coverage = embed_teacher(
            options.model,
            job,
            language=options.language,
            max_length=options.max_length,
            normalize_full_width=options.normalize_full_width,
        )
    print(*coverage.lines(), sep="\n")


def _embed_records(options: argparse.Namespace) -> None:
    from altclip_train.data.parts import part_of_work
    from altclip_train.embedding.tables import Table, embed_pictures, embed_texts
    from altclip_train.embedding.towers import Towers

    part = part_of_work(options.part)
    table = Table(directory=Path(options.output), dtype=options.dtype, file_format=options.format, part=part)
    towers = Towers(options.model, device=_device_to_embed_on(options.device), max_length=options.max_length)
    if options.texts is not None:
        made = embed_texts(towers, options.texts, table)
    else:
        made = embed_pictures(towers, options.images, table)
    print(*made.lines(table.directory), sep="\n")


def _search(options: argparse.Namespace) -> None:
    from altclip_train.embedding.search import search

    device = device_of(options.device)
    hits = search(options.index, options.model, options.query, image=options.image, top=options.top, device=device)
    if options.json:
        print(json.dumps([hit._asdict() for hit in hits], ensure_ascii=False, indent=1))
    else:
        print(*(f"{hit.rank:3d}  {hit.score:.4f}  {hit.id}" for hit in hits), sep="\n")


def device_of(name: str | None) -> str:
    """That of the command line, else this process's GPU, else the CPU."""
    import torch

    return name or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")


def _device_to_embed_on(name: str | None) -> str:
    device = device_of(name)
    keep_freed_memory(device)
    return device

"""``altclip demo``: a web page over a model and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from altclip_train.cli.embeddings import add_device, device_of

Tools = argparse._SubParsersAction
QUERIES = ("a red apple", "一只猫", "海滩上的狗", "two birds")


def add(tools: Tools) -> None:
    """Add ``demo`` to the tools of ``altclip``."""
    summary = "a web page: search pictures in any language, name and describe a picture"
    tool = tools.add_parser(
        "demo",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Pictures are embedded once and kept in the cache. "
        "Needs pip install 'altclip_train[demo]'.",
    )
    tool.add_argument("model", metavar="MODEL", help="a model directory, a hub id, or a finished run")
    tool.add_argument("--images", nargs="+", required=True, metavar="DIR_OR_SHARDS", help="pictures to search")
    tool.add_argument(
        "--texts",
        nargs="*",
        metavar="FILE",
        help="texts to describe with (default: captions of the shards in --images)",
    )
    tool.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: for the network, to everyone (default: %(default)s)"
    )
    tool.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    add_device(tool)
    tool.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from altclip_train.data.cache import default_directory
    from altclip_train.demo import build_page
    from altclip_train.embedding.collection import Collection
    from altclip_train.embedding.towers import Towers

    try:
        import gradio  # noqa: F401 - asked for before minutes of embedding
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("altclip demo needs gradio: pip install 'altclip_train[demo]'") from error
    run = Path(options.model) / "model"
    towers = Towers(run if (run / "config.json").is_file() else options.model, device=device_of(options.device))
    collection = Collection(towers, options.images, options.texts, default_directory().parent / "demo")
    page = build_page(collection, title=f"{options.model}", queries=QUERIES)
    page.launch(server_name=options.host, server_port=options.port, share=False)

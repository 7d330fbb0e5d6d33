"""The ``altclip`` command: everyday tools beside training and evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="altclip", description="Tools of altclip_train.")
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    data = tools.add_parser("data", help="prepare and look at data").add_subparsers(required=True, metavar="ACTION")
    starter = data.add_parser("starter", help="build the starter data from installed packages, without a network")
    starter.add_argument("--root", default="data/starter", help="where to build it (default: %(default)s)")
    starter.add_argument("--rebuild", action="store_true", help="build again although it is there")
    starter.set_defaults(run=_starter)
    return parser


def _starter(options: argparse.Namespace) -> None:
    # Imported here, so that --help stays quick.
    from altclip_train.data.starter import build_starter, ensure_starter

    root = build_starter(options.root) if options.rebuild else ensure_starter(options.root)
    print(f"starter data: {root}")


if __name__ == "__main__":
    main()

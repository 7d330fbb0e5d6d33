"""The ``altclip`` command: everyday tools beside training and evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from altclip_train.cli import configs, data, demo, doctor, embeddings, models, reports
from altclip_train.errors import short_errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one tool. Mistakes of the user end the process with one line."""
    parser = argparse.ArgumentParser(prog="altclip", description="Tools of altclip_train.")
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    data.add(tools)
    models.add(tools)
    embeddings.add(tools)
    reports.add(tools)
    configs.add(tools)
    demo.add(tools)
    doctor.add(tools)
    options = parser.parse_args(arguments)
    with short_errors():
        options.run(options)

"""``altclip report``: the page of a run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

Tools = argparse._SubParsersAction


def add(tools: Tools) -> None:
    """Add ``report`` to the tools of ``altclip``."""
    summary = "write report.html of a run, or compare several on one page"
    tool = tools.add_parser(
        "report",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Training writes report.html by itself; this writes it anew, "
        "also while the run goes on.",
    )
    tool.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as outputs/teacher/latest")
    tool.add_argument(
        "--output", default="comparison.html", metavar="FILE", help="page of several runs (default: %(default)s)"
    )
    tool.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from altclip_train.report.page import write_comparison, write_report

    directories = list(map(Path, options.runs))
    written = (
        write_report(*directories) if len(directories) == 1 else write_comparison(directories, Path(options.output))
    )
    print(f"written to {written}")

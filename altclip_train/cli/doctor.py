"""``altclip doctor``: what could stop a run, before it starts."""

from __future__ import annotations

import argparse

Tools = argparse._SubParsersAction


def add(tools: Tools) -> None:
    """Add ``doctor`` to the tools of ``altclip``."""
    summary = "check devices, network, shared memory, disk, shards, versions, clock and locale"
    tool = tools.add_parser(
        "doctor",
        help=summary,
        description=summary[0].upper() + summary[1:] + ". Exits with 1 when there is an error. Started by torchrun or "
        "srun in the place of train.py, it names the nodes that do not reach each other.",
    )
    tool.add_argument("--outputs", default="outputs", metavar="DIR", help="where runs go (default: %(default)s)")
    tool.add_argument(
        "--shards", nargs="+", default=(), metavar="URLS", help="shards to try, braces and globs in quotes"
    )
    tool.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import socket
    from functools import partial
    from pathlib import Path

    from altclip_train import checks
    from altclip_train.training.launch import launched_process
    from altclip_train.training.reachability import reachability

    process = launched_process()
    findings = checks.run_checks([checks.packages])
    if not any(finding.level == "error" for finding in findings):  # torch and Lightning are safe to import
        places = [partial(checks.disk, Path(options.outputs)), partial(checks.shards, options.shards)]
        here = [checks.devices, checks.shared_memory, *places, checks.clock, checks.text_encoding]
        findings += checks.run_checks([*here, reachability])
    for finding in findings:
        where = "" if process is None else f"{socket.gethostname()}: "
        if process is None or process.rank == 0 or (process.local_rank == 0 and finding.level != "ok"):
            print(f"{where}{finding}")
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(1)

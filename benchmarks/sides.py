"""What every comparison shares: its sides take turns, each in a process and an environment of its own.

A script that is started with ``--side NAME`` is one side: it prepares, answers one line, then does one round for each
line that it is sent. The script that a person starts asks the sides in turns, A B A B, so that a machine whose speed
drifts treats them alike; ratios are taken round by round. Peers run under ``--peers PYTHON`` (see README.md); without
it only our sides are measured.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "altclip_train", "transformers", "open_clip_torch", "sentence-transformers", "clip-benchmark")
CEILING = "ceiling"  # the side that does nothing but large matrix products
CEILING_SIZES, CEILING_PRODUCTS = {"cpu": 2048, "cuda": 8192}, 8
Round = Callable[[int], Mapping[str, Any]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--peers", metavar="PYTHON", help="the interpreter of the peers' environment")
    options.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    options.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    options.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    options.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="bfloat16 by autocast (default: %(default)s)",
    )
    options.add_argument("--json", metavar="FILE", help="write every measurement")
    options.add_argument("--side", help=argparse.SUPPRESS)
    return options


# One side


def serve(options: argparse.Namespace, prepare: Callable[[], Round]) -> None:
    """Be one side: prepare, then a round for each line, timed whole unless it gives seconds of its own.

    Peak memory is counted from when everything is prepared, above what the process had before `models_follow`.
    """
    torch.set_num_threads(options.threads)
    do = _ceiling(options) if options.side == CEILING else prepare()
    _say({"versions": _versions()})
    _forget_peak()
    for line in sys.stdin:
        with timed() as seconds:
            result = do(int(line))
        _say({**seconds, **result, "peak_bytes": _peak_bytes()})


def models_follow() -> None:
    """To be called once libraries are loaded: they do not count as memory of a side."""
    _give_back()  # what loading has left would count as there before
    _before.update(cpu=_status("VmRSS"), cuda=torch.cuda.memory_allocated())


def ours_follows(options: argparse.Namespace) -> None:
    """`models_follow`, and what our commands do before they train or evaluate. Peers run as they come."""
    from altclip_train.heap import keep_freed_memory

    keep_freed_memory(options.device)
    models_follow()


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds and CPU seconds of the block, filled in at its end. A round may time a part of itself."""
    seconds: dict[str, float] = {}
    _synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    yield seconds
    _synchronize()
    seconds |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def autocast(options: argparse.Namespace) -> torch.autocast:
    """The forward pass of every side runs in this."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.dtype == "bfloat16")


def _ceiling(options: argparse.Namespace) -> Round:
    dtype, size = getattr(torch, options.dtype), CEILING_SIZES[options.device]
    a, b = (torch.randn(size, size, dtype=dtype, device=options.device) for _ in range(2))

    def products(_: int) -> Mapping[str, Any]:
        times = []
        for _ in range(CEILING_PRODUCTS):
            with timed() as seconds:
                a @ b
            times.append(seconds["seconds"])
        return {"flops_per_second": 2 * size**3 / min(times)}

    return products


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


_before = {"cpu": 0, "cuda": 0}


def _forget_peak() -> None:
    """Building a model takes more than training it may: what counts begins here."""
    _give_back()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone
        Path("/proc/self/clear_refs").write_text("5")


def _give_back() -> None:
    gc.collect()
    with suppress(AttributeError):  # glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def _peak_bytes() -> int:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() - _before["cuda"]
    return max(_status("VmHWM") - _before["cpu"], 1)  # a side that takes next to nothing may end below where it began


def _status(name: str) -> int:
    """A size of this process in bytes; where there is no /proc, its peak so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


# All sides


class Side:
    """A process that does rounds on request."""

    def __init__(self, name: str, python: str, arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        self.name = name
        command = [python, sys.argv[0], "--side", name, *arguments]
        environment = {**os.environ, **settings}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = {}
        self.first: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []
        self.peak_bytes = 0

    def wait_until_prepared(self) -> None:
        self.versions = self._answer()["versions"]

    def round(self, number: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print too
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with {self.process.wait()}; its message stands above")

    def close(self) -> None:
        self.process.communicate()

    def column(self, figure: str) -> list[float]:
        return [measured[figure] for measured in self.rounds]


def take_turns(
    options: argparse.Namespace,
    ours: Sequence[str],
    peers: Sequence[str],
    arguments: Sequence[str],
    *,
    warm_up: int = 1,
    settings: Mapping[str, str] = {},
) -> dict[str, Side]:
    """Every side, and the ceiling, after its rounds: one that warms up and is not counted, then ``--rounds``.

    `settings` are variables of the environment, the same for all.
    """
    pythons = dict.fromkeys([*ours, CEILING], sys.executable)
    pythons |= dict.fromkeys(peers, options.peers) if options.peers else {}
    shared = [f"--{name}={getattr(options, name)}" for name in ("threads", "device", "dtype", "rounds")]
    sides = [Side(name, python, [*arguments, *shared], settings) for name, python in pythons.items()]
    for side in sides:
        side.wait_until_prepared()
    for number in range(warm_up + options.rounds):
        for side in sides:
            side.round(number)
    for side in sides:
        side.close()
        side.peak_bytes = max(measured.pop("peak_bytes") for measured in side.rounds)
        side.first = side.rounds[0]
        side.rounds = side.rounds[warm_up:]
    return {side.name: side for side in sides}


def without_bfloat16(options: argparse.Namespace) -> str | None:
    """Why bfloat16 is not measured here; None where it may be."""
    if options.dtype == "bfloat16" and options.device == "cpu" and not _processor()[1] & {"amx_bf16", "avx512_bf16"}:
        return "this processor multiplies no bfloat16 (neither AMX nor AVX512-BF16)"
    return None


# What is said about them. A row of a result is what tables.py prints: a figure of each round, and its aim.


def row(
    what: str, values: Sequence[float] = (), unit: str = "times", aim: float | None = None, **more: Any
) -> dict[str, Any]:
    """A line of the table. `more`: `cpu`, the same by CPU time; `at_most`, for an aim from above."""
    rounded = {name: _rounded(value) if isinstance(value, list) else value for name, value in more.items()}
    return {"what": what, "unit": unit, "values": _rounded(values), "aim": aim, **rounded}


def faster(sides: Mapping[str, Side], own: str, peer: str, aim: float | None = None) -> list[dict[str, Any]]:
    """How many times as long the peer took, round by round; no row without either."""
    if own not in sides or peer not in sides:
        return []
    wall, cpu = (
        [b / a for a, b in zip(_costs(sides[own], figure), _costs(sides[peer], figure), strict=True)]
        for figure in ("seconds", "cpu_seconds")
    )
    return [row(f"{peer} / {own}", wall, aim=aim, cpu=cpu)]


def _costs(side: Side, figure: str) -> list[float]:
    """Of each round; for a real token where a side counts them."""
    return [measured[figure] / measured.get("tokens", 1) for measured in side.rounds]


def smaller(sides: Mapping[str, Side], own: str, peer: str, aim: float | None = None) -> list[dict[str, Any]]:
    """How many times as much memory the peer took."""
    if own not in sides or peer not in sides:
        return []
    return [row(f"peak memory of {peer} / {own}", [sides[peer].peak_bytes / sides[own].peak_bytes], aim=aim)]


def roofline(
    options: argparse.Namespace, sides: Mapping[str, Side], own: str, aim: float | None = None
) -> list[dict[str, Any]]:
    """Share of the rate of a large matrix product that forward and backward reach on real tokens, round by round."""
    pairs = zip(sides[own].rounds, sides[CEILING].rounds, strict=True)
    shares = [100 * a["flops"] / a["compute_seconds"] / b["flops_per_second"] for a, b in pairs]
    rows = [row(f"{own}: forward + backward, of the ceiling", shares, "%", aim)]
    if options.device == "cuda":
        from altclip_train.models.flops import peak_flops

        if peak := peak_flops(torch.cuda.get_device_name()):
            steps = [100 * a["flops"] / a["seconds"] / peak for a in sides[own].rounds]
            rows.append(row(f"{own}: whole step, model FLOP utilisation in bfloat16", steps, "%"))
    return rows


def report(
    options: argparse.Namespace,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    sides: Mapping[str, Side] | None = None,
    *,
    per_round: float = 0,
    unit: str = "",
    **facts: Any,
) -> None:
    """Print the tables of a result, and write it as JSON. `per_round`: how many of `unit` a round does."""
    from tables import render

    if options.device == "cuda":
        rows = [{**row, "aim": None} for row in rows]  # aims are of a CPU
    measured = {}
    ceilings = [side for side in (sides or {}).values() if side.name == CEILING]
    for name, side in (sides or {}).items():
        if side in ceilings:
            continue
        rounds = {figure: _rounded(side.column(figure)) for figure in ("seconds", "cpu_seconds")}
        measured[name] = {"per_round": per_round, "unit": unit, "peak_bytes": side.peak_bytes, **rounds}
    if ceilings:
        facts["ceiling_gflops"] = [round(rate / 1e9) for side in ceilings for rate in side.column("flops_per_second")]
    versions: dict[str, str] = {}
    for side in (sides or {}).values():
        versions |= side.versions
    result = {
        "title": title,
        "machine": machine(options),
        "versions": versions or _versions(),
        "facts": facts,
        "sides": measured,
        "rows": list(rows),
    }
    print(render(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What a figure depends on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    name, flags = _processor()
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    device = f"{name} ({widest})"
    if options.device == "cuda":
        device = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return {
        "device": device,
        "threads": options.threads,
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "commit": commit.stdout.strip(),
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _processor() -> tuple[str, set[str]]:
    """Name and abilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor(), set()
    named = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {name.strip(): value.strip() for name, value in named.items()}
    return values.get("model name", "unknown"), set(values.get("flags", "").split())

"""What every comparison shares: its sides take turns, each in a process and an environment of its own.

A script that is started with ``--side NAME`` is one side: it prepares, answers one line, then does one round for each
line that it is sent. The script that a person starts asks the sides in turns, A B A B, so that a machine whose speed
drifts treats them alike; ratios are taken round by round. Peers run under ``--peers PYTHON`` (see README.md); without
it only our sides are measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "altclip_train", "transformers", "open_clip_torch", "sentence-transformers", "clip-benchmark")
Round = Callable[[int], Mapping[str, Any]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--peers", metavar="PYTHON", help="the interpreter of the peers' environment")
    options.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    options.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    options.add_argument("--json", metavar="FILE", help="write every measurement")
    options.add_argument("--side", help=argparse.SUPPRESS)
    return options


def serve(prepare: Callable[[], tuple[Mapping[str, Any], Round]]) -> None:
    """Be one side: prepare, then a round for each line, timed whole unless it gives seconds of its own."""
    facts, do = prepare()
    _say({**facts, "versions": _versions()})
    for line in sys.stdin:
        with timed() as seconds:
            result = do(int(line))
        _say({**seconds, **result, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds and CPU seconds of the block, filled in at its end. A round may time a part of itself."""
    seconds: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield seconds
    seconds |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


class Side:
    """A process that does rounds on request."""

    def __init__(self, name: str, python: str, arguments: Sequence[str]) -> None:
        self.name = name
        command = [python, sys.argv[0], "--side", name, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()
        self.first: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

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


def take_turns(
    options: argparse.Namespace, ours: Sequence[str], peers: Sequence[str], arguments: Sequence[str]
) -> list[Side]:
    """Every side after its rounds: one that warms up and is not counted, then ``--rounds``."""
    pythons = dict.fromkeys(ours, sys.executable) | (dict.fromkeys(peers, options.peers) if options.peers else {})
    shared = [*arguments, "--threads", str(options.threads)]
    sides = [Side(name, python, shared) for name, python in pythons.items()]
    for number in range(options.rounds + 1):
        for side in sides:
            side.round(number)
    for side in sides:
        side.first, *side.rounds = side.rounds
        side.close()
    return sides


def ratios(side: Side, peer: Side, figure: str = "seconds") -> list[float]:
    """How many times as long the peer took, round by round."""
    return [theirs[figure] / own[figure] for own, theirs in zip(side.rounds, peer.rounds, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median with the range of all values."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def gemm_rate(threads: int, dtype: torch.dtype = torch.float32) -> float:
    """The best rate of a large matrix product here, in FLOP/s: the ceiling of everything measured."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{_processor()}, {threads} threads, {platform.system()}, Python {platform.python_version()}",
        "gemm_gflops": round(gemm_rate(threads) / 1e9),
        "commit": commit.stdout.strip(),
    }


def report(options: argparse.Namespace, sides: Sequence[Side], extra: Mapping[str, Any]) -> None:
    """Print what was measured on what, and write it as JSON."""
    facts = {**machine(options.threads), **extra} if "commit" not in extra else dict(extra)
    for name, value in facts.items():
        print(f"{name}: {value}")
    measured = {side.name: {"facts": side.facts, "rounds": side.rounds} for side in sides}
    for side in sides:
        print(f"{side.name}: {', '.join(f'{k} {v}' for k, v in side.facts['versions'].items())}")
    if options.json:
        Path(options.json).write_text(json.dumps({**facts, "sides": measured}, indent=1) + "\n", encoding="utf-8")


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    widest = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{name} ({widest})"

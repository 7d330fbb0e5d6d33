"""How soon commands answer: ``python benchmarks/startup.py``. Median seconds of whole processes, on a warm disk."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
AIMS = {  # seconds
    "-m altclip_train.cli --help": 0.3,
    "train.py stage=teacher --cfg job": 2.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    for command, aim in AIMS.items():
        seconds = statistics.median([run(command) for _ in range(rounds + 1)][1:])  # the first fills the disk's cache
        print(f"{seconds:6.2f} s  (aim: {aim} s)  python {command}")


def run(command: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *command.split()], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

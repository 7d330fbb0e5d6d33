"""How long training stands still for a checkpoint that it waits for, and for one that is written in the background.

    python benchmarks/checkpoint_stall.py --directory DIR_ON_THE_DISK

Both sides save the same state by the callback of a run, in turns, A B A B; a ratio is that of one round. What remains
in the background is the copy of the state in host memory; until it is verified, the writer shares the processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.saving import Checkpoints

TENSOR_BYTES = 16 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights and optimizer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="where the state lies (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    options = parser.parse_args()
    count = max(1, options.megabytes * 10**6 // TENSOR_BYTES)
    state = {"state_dict": {str(n): torch.rand(TENSOR_BYTES // 4, device=options.device) for n in range(count)}}
    writer = SimpleNamespace(
        save_checkpoint=AtomicCheckpointIO().save_checkpoint, remove_checkpoint=AtomicCheckpointIO().remove_checkpoint
    )
    connector = SimpleNamespace(dump_checkpoint=lambda weights_only: state)  # noqa: ARG005 - Lightning's signature
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=True, strategy=writer, _checkpoint_connector=connector)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        settings: dict[str, Any] = {"every_n_train_steps": 1, "every_n_minutes": None, "keep": 1, "max_failures": 1}
        settings["mirror"] = None
        sides = [Checkpoints(directory=directory, **settings, in_background=background) for background in (False, True)]
        rounds = [[seconds(side, trainer) for side in sides] for _ in range(options.rounds + 1)][1:]  # one to warm up
    print(f"{count * TENSOR_BYTES / 1e6:.0f} MB on {options.device}, {options.rounds} rounds, seconds (median)")
    for name, side in (("waiting", 0), ("in background", 1)):
        stall, whole = (statistics.median(each[side][which] for each in rounds) for which in (0, 1))
        print(f"{name:>14}: training stands still {stall:7.3f}, verified after {whole:7.3f}")
    ratios = sorted(waiting[0] / background[0] for waiting, background in rounds)
    print(
        f"stands still {statistics.median(ratios):.1f} times as long when it waits ({ratios[0]:.1f}-{ratios[-1]:.1f})"
    )


def seconds(checkpoints: Checkpoints, trainer: Any) -> tuple[float, float]:
    """Until training may go on, and until the checkpoint is verified."""
    trainer.global_step += 1
    started = time.perf_counter()
    checkpoints.save(trainer)
    stall = time.perf_counter() - started
    checkpoints.finish(trainer)
    return stall, time.perf_counter() - started


if __name__ == "__main__":
    main()

"""Run a function on several real gloo processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[..., Any], world_size: int, directory: Path, *arguments: Any) -> list[Any]:
    """``function(rank, *arguments)`` on every rank; the returned values in rank order."""
    mp.spawn(_worker, (function, world_size, str(directory), arguments), nprocs=world_size)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]


def _worker(rank: int, function: Callable[..., Any], world_size: int, directory: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size)
    try:
        torch.save(function(rank, *arguments), Path(directory) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()

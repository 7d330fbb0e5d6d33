"""Processes that torchrun or srun started: which one this is, and what all of them must agree on from the beginning.

Lightning's own launcher needs none of it: it starts the other processes when everything is decided, and tells them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # nodes of a cluster do not start at once
WORK = timedelta(hours=2)  # of a rank, such as to fetch a checkpoint; when rank 0 dies, so does its store


class Process(NamedTuple):
    rank: int
    processes: int
    host: str  # of rank 0
    port: int
    local_rank: int
    agent: bool  # whether the launcher itself serves a store there


def own_rank() -> int:
    """This process among all of the run, before Lightning has set up their group: as whoever started it says."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def launched_process() -> Process | None:
    """This process among those that a launcher started; None where nothing did, or for a single one."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        rank, local_rank = int(environment["RANK"]), int(environment["LOCAL_RANK"])
        process = Process(rank, int(environment["WORLD_SIZE"]), host, port, local_rank, agent)
    elif "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm, tasks = SLURMEnvironment(), int(environment.get("SLURM_NTASKS", "1"))
        rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        process = Process(rank, tasks, slurm.main_address, slurm.main_port, local_rank, agent=False)
    else:
        return None
    return process if process.processes > 1 else None


def from_rank_zero(make: Callable[[], str]) -> str:
    """What `make` returns on rank 0, on every process of a launcher, before there is a process group.

    Raises ValueError with rank 0's own words where it failed, and ConnectionError where it cannot be reached.
    """
    process = launched_process()
    if process is None:
        return make()
    store, key = connect(process), _fresh_key("from_rank_zero")
    return _publish(store, key, make) if process.rank == 0 else _published(store, key, rank=0)


def lowest(measure: Callable[[], int]) -> int:
    """The lowest of what `measure` returns on the processes of a launcher, on every one. Raises as `from_rank_zero`."""
    process = launched_process()
    if process is None:
        return measure()
    store, key = connect(process), _fresh_key("lowest")
    _publish(store, f"{key}/{process.rank}", measure)
    return min(_published(store, f"{key}/{rank}", rank=rank) for rank in range(process.processes))


def _publish(store: TCPStore, key: str, make: Callable[[], T]) -> T:
    try:
        value = make()
    except Exception as error:
        store.set(key, json.dumps({"error": str(error)}))
        raise
    store.set(key, json.dumps({"value": value}))
    return value


def _published(store: TCPStore, key: str, *, rank: int) -> Any:
    store.wait([key], WORK)
    answer = json.loads(store.get(key))
    if "error" in answer:
        raise ValueError(f"rank {rank} ended with: {answer['error']}")
    return answer["value"]


def _fresh_key(name: str) -> str:
    """The same on every process, and another one after torchrun has started all of them again."""
    return f"altclip/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@cache  # one for each process, as long as it lives: rank 0 serves it, and none shall ask in vain
def connect(process: Process) -> TCPStore:
    """A store that all processes share. Raises ConnectionError."""
    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    # Where no agent serves one, beside the port that the process group will use.
    port = process.port if process.agent else process.port + 1
    serves = process.rank == 0 and not process.agent
    try:
        store = TCPStore(process.host, port, is_master=serves, timeout=PATIENCE, wait_for_workers=False)
    except (DistError, TimeoutError) as error:
        raise ConnectionError(
            f"rank {process.rank} cannot reach rank 0 at {process.host}:{port} ({error}). "
            "`altclip doctor`, started in the same way, says which nodes do not reach each other"
        ) from error
    return store

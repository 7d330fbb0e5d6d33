"""Whether the nodes that a launcher started reach each other, and which do not.

Every process opens a port and tries those of the other nodes; only then all try a collective, which would just hang.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from altclip_train.checks import Finding
from altclip_train.training.launch import Process, connect, launched_process

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

PATIENCE = timedelta(seconds=60)  # until all processes have appeared, and for the collective
CONNECT_SECONDS = 5.0
CLOCK_SECONDS = 5.0


def reachability() -> Iterator[Finding]:
    """The same findings on every process, but for what its own collective met."""
    process = launched_process()
    if process is None:
        advice = "start it by torchrun or srun, as the run, to try the nodes"
        yield Finding("network", "ok", "a single process, so none to reach", advice)
        return
    store = connect(process)
    findings = list(between_nodes(process, store))
    yield from findings
    if all(finding.level != "error" for finding in findings):
        yield collective(process, store)


def between_nodes(process: Process, store: TCPStore) -> Iterator[Finding]:
    """Who is there, whose clock is apart, and every pair of nodes that does not reach each other."""
    with socket.create_server(("", 0), backlog=1024) as listener:
        own = {"host": socket.gethostname(), "address": _own_address(process), "port": listener.getsockname()[1]}
        store.set(_key("place", process.rank), json.dumps(own))
        present = _await_all(process, store)
        places = {rank: json.loads(store.get(_key("place", rank))) for rank in present}
        hosts = sorted({place["host"] for place in places.values()})
        absent = [str(rank) for rank in range(process.processes) if rank not in present]
        if absent:
            found = f"rank {', '.join(absent)} of {process.processes} did not appear; those of {_list(hosts)} did"
            yield Finding("network", "error", found, "look whether the other nodes are up and resolve that of rank 0")
            return
        ranks = range(process.processes)
        clocks = {places[rank]["host"]: time for rank, time in _exchange("clock", process, store, time.time()).items()}
        early, late = min(clocks, key=lambda host: clocks[host]), max(clocks, key=lambda host: clocks[host])
        if clocks[late] - clocks[early] > CLOCK_SECONDS:
            found = f"that of {late} is {clocks[late] - clocks[early]:.0f} s ahead of {early}"
            yield Finding("clock", "warning", found, "run an NTP client on every node")
        first_of_host = {places[rank]["host"]: places[rank] for rank in reversed(ranks)}
        failures = [
            f"{own['host']} does not reach {_name(place)}" for place in first_of_host.values() if not _reaches(place)
        ]
        failed = sorted({line for lines in _exchange("failed", process, store, failures).values() for line in lines})
    for line in failed:
        advice = "open the ports between them; NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the interface"
        yield Finding("network", "error", line, advice)
    if not failed:
        yield Finding(
            "network", "ok", f"{process.processes} processes on {_nodes(hosts)} reach each other: {_list(hosts)}"
        )


def collective(process: Process, store: TCPStore) -> Finding:
    """Add up a number over all processes, by the backend that a run would use."""
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cuda", process.local_rank) if backend == "nccl" else torch.device("cpu")
    try:
        group = dist.PrefixStore("doctor", store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=group, rank=process.rank, world_size=process.processes, timeout=PATIENCE)
        total = torch.ones(1, device=device)
        dist.all_reduce(total)
        dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:
        found = f"a sum over all processes failed on {socket.gethostname()}: {str(error).partition(chr(10))[0]}"
        advice = "NCCL_DEBUG=INFO, or TORCH_DISTRIBUTED_DEBUG=DETAIL for gloo, shows each step"
        return Finding(backend, "error", found, advice)
    return Finding(backend, "ok", f"a sum over {int(total)} processes")


def _await_all(process: Process, store: TCPStore) -> list[int]:
    """Ranks that appeared in time, as rank 0 saw it."""
    keys = {rank: _key("place", rank) for rank in range(process.processes)}
    if process.rank == 0:
        deadline = time.monotonic() + PATIENCE.total_seconds()
        present: list[int] = []
        while len(present) < len(keys) and time.monotonic() < deadline:
            present = [rank for rank, key in keys.items() if store.check([key])]
            time.sleep(0.1)
        store.set(_key("present", 0), json.dumps(present))
    return json.loads(store.get(_key("present", 0)))


def _exchange(what: str, process: Process, store: TCPStore, own: Any) -> dict[int, Any]:
    store.set(_key(what, process.rank), json.dumps(own))
    return {rank: json.loads(store.get(_key(what, rank))) for rank in range(process.processes)}


def _key(what: str, rank: int) -> str:
    return f"altclip/doctor/{what}/{rank}"


def _own_address(process: Process) -> str:
    """That by which this node reaches rank 0's; a datagram socket sends nothing when it connects."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((process.host, process.port))
        return probe.getsockname()[0]


def _reaches(place: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((place["address"], place["port"]), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _name(place: dict[str, Any]) -> str:
    return f"{place['host']} at {place['address']}:{place['port']}"


def _nodes(hosts: list[str]) -> str:
    return "1 node" if len(hosts) == 1 else f"{len(hosts)} nodes"


def _list(hosts: list[str]) -> str:
    return ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")

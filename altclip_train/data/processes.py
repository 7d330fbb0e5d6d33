"""One function over many tasks in several processes, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from typing import Any, TypeVar

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_LOADER_MODULES = ("altclip_train.data.dataset",)  # by name: whoever begins the server may be before these imports

_shared: Any = None  # of a worker process


def available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_loader_server(*modules: str) -> None:
    """Begin the process that loader processes are forked from, where none is there.

    To import torch takes it a second or two. Begun before this process imports what it needs itself, it is ready when
    a loader is. ``modules`` are what it imports beside those of the dataset: loader processes run the main script's
    imports too.
    """
    multiprocessing.set_forkserver_preload([*_LOADER_MODULES, *modules])
    forkserver.ensure_running()


def map_processes(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Iterable[Task], processes: int
) -> Iterator[Result]:
    """``function(shared, task)`` of each task; ``shared`` goes to every process once.

    The first error ends it: tasks that have not begun are dropped. With one process everything runs in this one.
    """
    tasks = list(tasks)
    if min(processes, len(tasks)) <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # else every worker would import torch anew
    workers = min(processes, len(tasks))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(shared, dict(os.environ)))
    try:
        futures = [pool.submit(_call, function, task) for task in tasks]
        while futures:
            yield futures.pop(0).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(shared: Any, environment: dict[str, str]) -> None:
    global _shared
    _shared = shared
    # A worker comes from a server that may be older than what was set since, such as credentials of a store.
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker of a killed command would wait for tasks for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(function: Callable[[Any, Any], Any], task: Any) -> Any:
    return function(_shared, task)

"""One function over many tasks in several processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from altclip_train.data.processes import map_processes


def value_of(suffix: str, name: str) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get(name + suffix)


def test_workers_have_the_environment_of_their_command_and_not_of_an_older_one(monkeypatch: pytest.MonkeyPatch):
    names = ["FIRST", "SECOND"]
    monkeypatch.delenv("FIRST_SET", raising=False)
    before = list(map_processes(value_of, "_SET", names, processes=2))
    monkeypatch.setenv("FIRST_SET", "now")
    after = list(map_processes(value_of, "_SET", names, processes=2))
    assert [value for _, value in before] == [None, None]
    assert [value for _, value in after] == ["now", None]
    assert os.getpid() not in {process for process, _ in before + after}


def test_loader_processes_begin_with_what_their_server_has_imported():
    script = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import sys
from altclip_train.data.processes import start_loader_server

start_loader_server("colorsys")
with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
    there = pool.submit(eval, "set(__import__('sys').modules)").result()
names = ["altclip_train.data.dataset", "torch", "colorsys", "lightning"]
print([name in there for name in names], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[True, True, True, False] False\n"

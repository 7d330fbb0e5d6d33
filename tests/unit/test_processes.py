"""One function over many tasks in several processes."""

from __future__ import annotations

import os

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

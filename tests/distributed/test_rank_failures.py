"""When a rank dies all end within seconds, and what is read last names it and its cause."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from altclip_train.training.rank_failures import GONE, End, _connection, _exit_of, _members, _serve
from tests.distributed.test_launchers import ended, slurm_tasks, torchrun_commands
from tests.faults.injections import inject
from tests.workspace import Workspace

SECONDS = 30.0  # a stock run over NCCL would take as long as the timeout of its process group
KILL = {"kind": "Send", "signal": 9}
DEATHS = [
    ("lightning", {"kind": "Raise", "rank": 1}, "RuntimeError: injected"),
    ("lightning", {**KILL, "rank": 1}, "killed by SIGKILL, as the system does when memory runs out"),
    ("lightning", {**KILL, "rank": 0}, GONE),
    ("torchrun", {"kind": "Raise", "rank": 1}, "RuntimeError: injected"),
    ("torchrun", {**KILL, "rank": 1}, GONE),
    ("slurm", {"kind": "Raise", "rank": 0}, "RuntimeError: injected"),
    ("slurm", {"kind": "Exit", "rank": 1}, GONE),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("launcher", "death", "cause"), DEATHS)
def test_the_rank_that_died_first_is_named_last(workspace: Workspace, launcher: str, death: dict, cause: str):
    """Stock Lightning: the last lines are the other rank's error of the network, or none; see test_stock_lightning."""
    overrides = ["stage=teacher", "trainer.devices=2", "trainer.max_steps=100000", "trainer.log_every_n_steps=1"]
    directory = workspace.new_directory()
    command = workspace.command(*overrides, inject(steps=[3], **death), directory=directory)
    if launcher == "torchrun":
        codes, output = ended(torchrun_commands(1, 2, *command[1:]), [{}])
    else:
        variables = slurm_tasks(2) if launcher == "slurm" else [{}]
        codes, output = ended([command] * len(variables), variables)
    died_at = (directory / "metrics.csv").stat().st_mtime  # its last step was a moment before
    assert time.time() - died_at < SECONDS, output
    assert 0 not in codes, output
    line = f"ended first: {cause}"
    assert f"error: rank {death['rank']} (process " in output, output
    assert output.count(line) == 1, output
    last = output.partition(line)[2]
    if launcher == "torchrun":
        last = last.partition("Root Cause")[2]
        assert f"rank      : {death['rank']} " in last, output
        assert ("RuntimeError: injected" if death["kind"] == "Raise" else "SIGKILL") in last, output
    else:
        assert "Traceback" not in last, output
    assert "gloo" not in output


def members(count: int) -> tuple[dict[Connection, int], list[Connection]]:
    """Connections as rank 0 holds them, and those of the ranks."""
    pairs = [Pipe() for _ in range(count)]
    return {here: rank for rank, (here, _) in enumerate(pairs)}, [there for _, there in pairs]


def say(line: Connection, end: End) -> None:
    line.send_bytes(json.dumps(end).encode())


def told(line: Connection) -> tuple[End, str]:
    assert line.poll(30), "nothing came"
    end, place = json.loads(line.recv_bytes())
    return End(*end), place


def serving(ends: dict[Connection, int]) -> threading.Thread:
    thread = threading.Thread(target=_serve, args=(ends, [f"place {rank}" for rank in ends.values()]), daemon=True)
    thread.start()
    return thread


def test_all_are_told_of_the_first_and_that_it_is_gone():
    ends, lines = members(3)
    thread = serving(ends)
    say(lines[2], End(2, "ValueError: bad"))
    for line in lines:
        assert told(line) == (End(2, "ValueError: bad"), "place 2")
    assert not lines[0].poll(0.1)
    lines[2].close()
    assert lines[0].poll(30)
    with pytest.raises(EOFError):
        lines[0].recv_bytes()
    thread.join(30)
    assert not thread.is_alive()


def test_an_error_of_the_network_is_not_the_cause_when_a_rank_is_gone():
    ends, lines = members(3)
    serving(ends)
    say(lines[0], End(0, "RuntimeError: gloo: connection closed by peer", echo=True))
    time.sleep(0.1)
    lines[1].close()
    assert told(lines[0]) == (End(1, GONE), "place 1")


def test_an_error_of_the_network_is_the_cause_when_nothing_else_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("altclip_train.training.rank_failures.ECHO_SECONDS", 0.1)
    ends, lines = members(2)
    serving(ends)
    say(lines[1], End(1, "DistBackendError: NCCL timed out", echo=True))
    assert told(lines[0]) == (End(1, "DistBackendError: NCCL timed out", echo=True), "place 1")


def test_ranks_that_end_well_end_nobody():
    ends, lines = members(3)
    serving(ends)
    say(lines[1], End(1, None))
    lines[1].close()
    assert not lines[2].poll(0.1)
    say(lines[0], End(0, None))
    assert told(lines[2])[0].cause is None


def test_who_does_not_know_the_token_is_no_member():
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines = [_connection(socket.create_connection(server.getsockname())) for _ in range(4)]
        for line, message in zip(
            lines, (["guess", 0, "x"], "nonsense", ["token", 1, "b"], ["token", 0, "a"]), strict=True
        ):
            line.send_bytes(json.dumps(message).encode())
        found, places = _members(server, "token", 2)
    assert sorted(found.values()) == [0, 1]
    assert places == ["a", "b"]
    for line in lines[:2]:
        with pytest.raises((EOFError, ConnectionError)):
            line.recv_bytes()


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("altclip_train.training.rank_failures.JOIN_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConnectionError, match="rank 0, 1 did not"):
        _members(server, "token", 2)


@pytest.mark.parametrize(
    ("command", "words"), [("exit 3", "exit code 3 without a word"), ("kill -TERM $$", "killed by SIGTERM")]
)
def test_the_exit_of_a_child_is_said(command: str, words: str):
    with subprocess.Popen(["sh", "-c", command]) as process:
        assert _exit_of(process) == words

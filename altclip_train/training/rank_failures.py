"""A rank that dies ends all others within seconds, and the last line says which one died first, and of what."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import DistError  # pyright: ignore[reportPrivateImportUsage]

from altclip_train import distributed
from altclip_train.training.signals import StoppedBySignal

JOIN_SECONDS = 60.0  # for all ranks to connect to rank 0
ECHO_SECONDS = 2.0  # an error of the network may be known before the death that it comes from
LAST_WORDS_SECONDS = 10.0  # for the first to print its own traceback
LAUNCHER_SECONDS = 1.0  # for torchrun and srun to see the first before the others
LONGEST = 1 << 16  # bytes of a message
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a node that loses power closes nothing
GONE = "it was killed, as the system does when memory runs out, or it ended without a word"


class End(NamedTuple):
    """What a rank says when it ends, or what is said of it."""

    rank: int
    cause: str | None  # None: it ends well
    echo: bool = False  # its cause is the end of another rank, as with errors of the network


class RankFailures(L.Callback):
    """Keeps a connection of every rank to rank 0, which the system closes however a rank ends.

    Rank 0 tells all ranks of the first that ended, and they end too: also those that wait in a collective call, which
    over NCCL last until the timeout of the process group. The first ends in its own words. On every node one other
    rank then names it; torchrun's own summary has its traceback.
    """

    def __init__(self) -> None:
        self._line: Connection | None = None
        self._left = False

    def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.world_size == 1:
            return
        server = socket.create_server(("", 0), backlog=trainer.world_size) if trainer.is_global_zero else None
        place = f"process {os.getpid()} on {socket.gethostname()}"
        offer = (server.getsockname()[1], secrets.token_hex(), place) if server is not None else None
        port, token, self._place_of_rank_zero = distributed.broadcast_object(offer)
        self._line = _connection(socket.create_connection((os.environ["MASTER_ADDR"], port), JOIN_SECONDS))
        self._line.send_bytes(json.dumps([token, trainer.global_rank, place]).encode())
        if server is not None:
            with server:
                members, places = _members(server, token, trainer.world_size)
            threading.Thread(target=_serve, args=(members, places), name="rank failures", daemon=True).start()
        self._listener = threading.Thread(target=self._listen, args=(trainer,), name="first failure", daemon=True)
        self._listener.start()

    def teardown(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._leave(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        if self._line is None:
            return
        if isinstance(exception, StoppedBySignal):  # all ranks do
            self._leave(trainer)
            return
        for logger in trainer.loggers:  # Lightning does it when callbacks are done: too late for one that is ended here
            logger.finalize("failed")
        echo = isinstance(exception, DistError) or "gloo" in str(exception)
        self.say(End(trainer.global_rank, f"{type(exception).__name__}: {exception}"[:2000], echo))
        # torchrun ends the others as soon as it sees the first; Lightning's handler would print a traceback of it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Ends this process when another was first.
        self._listener.join(ECHO_SECONDS + LAST_WORDS_SECONDS + LAUNCHER_SECONDS + 5)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(exception)

    def say(self, end: End) -> None:
        """Tell rank 0 that this rank ends."""
        if self._line is not None:
            with suppress(OSError):  # rank 0 is gone
                self._line.send_bytes(json.dumps(end).encode())

    def _leave(self, trainer: L.Trainer) -> None:
        if self._line is None:
            return
        self._left = True
        self.say(End(trainer.global_rank, None))
        if trainer.is_global_zero:  # the others must hear of it before this process is gone
            self._listener.join(LAST_WORDS_SECONDS)

    def _listen(self, trainer: L.Trainer) -> None:
        """End this process when another was the first to die."""
        assert self._line is not None
        first, place = _received(self._line) or [End(0, GONE), self._place_of_rank_zero]
        rank, cause, _ = End(*first)
        if self._left or cause is None or rank == trainer.global_rank:
            return
        self._line.poll(LAST_WORDS_SECONDS)  # until rank 0 closes it: the first is gone
        local_rank = rank - trainer.global_rank + trainer.local_rank
        launcher = trainer.strategy.launcher
        children = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
        if cause == GONE and 0 < local_rank <= len(children):
            cause = _exit_of(children[local_rank - 1])
        if trainer.local_rank == (1 if local_rank == 0 else 0):
            sys.stdout.flush()
            print(f"\nerror: rank {rank} ({place}) ended first: {cause}", file=sys.stderr, flush=True)
        if not children:
            time.sleep(LAUNCHER_SECONDS)
        for child in children:
            child.kill()
        os._exit(1)


def _exit_of(process: subprocess.Popen[Any]) -> str:
    code = process.wait(LAUNCHER_SECONDS)
    if code == -signal.SIGKILL:
        return "killed by SIGKILL, as the system does when memory runs out"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code} without a word"


def _connection(end: socket.socket) -> Connection:
    end.settimeout(None)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has not all of them
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(end.detach())


def _members(server: socket.socket, token: str, count: int) -> tuple[dict[Connection, int], list[str]]:
    """The connection and place of every rank; whoever does not know the token is turned away."""
    server.settimeout(JOIN_SECONDS)
    members: dict[Connection, int] = {}
    places = [""] * count
    while len(members) < count:
        try:
            connection = _connection(server.accept()[0])
        except TimeoutError:
            absent = sorted(set(range(count)) - set(members.values()))
            raise ConnectionError(
                f"rank {', '.join(map(str, absent))} did not connect to rank 0 within {JOIN_SECONDS:g} s; "
                "`altclip doctor`, started in the same way, says which nodes do not reach each other"
            ) from None
        match _received(connection) if connection.poll(5.0) else None:
            case [str(said), int(rank), str(place)] if secrets.compare_digest(said, token):
                members[connection], places[rank] = rank, place
            case _:
                connection.close()
    return members, places


def _serve(members: dict[Connection, int], places: list[str]) -> None:
    """On rank 0: wait for the first that dies, tell all, and close the connections when it is gone."""
    waiting, first = dict(members), None
    while waiting and (first is None or first.echo):
        ready = wait(list(waiting), None if first is None else ECHO_SECONDS)
        if not ready:
            break
        for member in ready:
            rank = waiting.pop(member)  # type: ignore[arg-type]
            end = End(*(_received(member) or (rank, GONE)))  # type: ignore[arg-type]
            if end.cause is None and rank > 0:
                continue
            if first is None or (first.echo and not end.echo):
                first = end
    assert first is not None, "rank 0 has said how it ends"
    for member in members:
        with suppress(OSError):
            member.send_bytes(json.dumps([first, places[first.rank]]).encode())
    (its_own,) = (member for member, rank in members.items() if rank == first.rank)
    with suppress(OSError):
        its_own.poll(LAST_WORDS_SECONDS)
    for member in members:
        member.close()


def _received(connection: Connection) -> Any:
    """The next message; None when the other end is gone."""
    try:
        return json.loads(connection.recv_bytes(LONGEST))
    except (EOFError, OSError, ValueError):
        return None

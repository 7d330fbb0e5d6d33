"""What processes of a launcher agree on before there is a process group."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from altclip_train.training import launch
from altclip_train.training.launch import Process, from_rank_zero, launched_process, lowest

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
    "SLURM_NTASKS": "16",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_JOB_ID": "71234",
    "SLURM_NODELIST": "gpu[7-8]",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM, "SLURM_JOB_NAME", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")  # so that what Lightning sets goes again
        monkeypatch.delenv(name)


def start(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_a_launcher_nothing_is_asked():
    assert launched_process() is None
    assert from_rank_zero(lambda: "here") == "here"
    assert lowest(lambda: 3) == 3


def test_torchrun_says_rank_and_place(monkeypatch: pytest.MonkeyPatch):
    start(monkeypatch, {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert launched_process() == Process(3, 8, "node1", 29400, local_rank=1, agent=True)


def test_slurm_says_rank_and_place(monkeypatch: pytest.MonkeyPatch):
    start(monkeypatch, SLURM)
    assert launched_process() == Process(5, 16, "gpu7", 16234, local_rank=2, agent=False)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_inside_a_slurm_job_is_no_process_of_a_run(monkeypatch: pytest.MonkeyPatch, name: str):
    start(monkeypatch, {**SLURM, "SLURM_JOB_NAME": name})
    assert launched_process() is None


def on_three(monkeypatch: pytest.MonkeyPatch, make, agree=from_rank_zero) -> list:
    """What three processes, here threads, get; the last one first, since rank 0 may come late."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = iter([2, 1, 0])
    monkeypatch.setattr(launch, "launched_process", lambda: Process(next(ranks), 3, "127.0.0.1", port, 0, agent=False))
    with ThreadPoolExecutor(3) as pool:
        return [pool.submit(agree, lambda n=n: make(n)) for n in range(3)]


def test_all_get_what_rank_zero_made(monkeypatch: pytest.MonkeyPatch):
    assert len({future.result(30) for future in on_three(monkeypatch, lambda n: f"made by {n}")}) == 1


def test_all_end_when_rank_zero_fails(monkeypatch: pytest.MonkeyPatch):
    def fail(_: int) -> str:
        raise FileNotFoundError("no checkpoint in outputs/x")

    for future in on_three(monkeypatch, fail):
        with pytest.raises((ValueError, FileNotFoundError), match="no checkpoint in outputs/x"):
            future.result(30)


def test_the_lowest_number_is_everybodys(monkeypatch: pytest.MonkeyPatch):
    assert [future.result(30) for future in on_three(monkeypatch, lambda n: [12, 7, 9][n], lowest)] == [7, 7, 7]


def test_all_end_when_one_cannot_measure(monkeypatch: pytest.MonkeyPatch):
    def fail(n: int) -> int:
        if n == 1:
            raise ValueError("no memory")
        return n

    for future in on_three(monkeypatch, fail, lowest):
        with pytest.raises(ValueError, match="no memory"):
            future.result(30)


def test_a_process_that_cannot_reach_rank_zero_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "PATIENCE", launch.timedelta(milliseconds=300))
    monkeypatch.setattr(launch, "launched_process", lambda: Process(1, 2, "127.0.0.1", 9, 1, agent=False))
    with pytest.raises(ConnectionError, match=r"rank 1 cannot reach rank 0 at 127\.0\.0\.1:10 .*altclip doctor"):
        from_rank_zero(lambda: "never")

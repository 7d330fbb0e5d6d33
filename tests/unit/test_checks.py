"""Each check tells a good machine from a bad one, and a bad one ends `altclip doctor` with an error."""

from __future__ import annotations

import socket
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from altclip_train import checks
from altclip_train.checks import Finding
from altclip_train.cli import main
from altclip_train.training import reachability
from altclip_train.training.launch import Process

GOOD = {"torch": "2.13.0+cpu", "lightning": "2.6.6", "hydra-core": "1.3.8"}


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> list[Finding]:
    """Findings where these packages are installed; `_` in names for `-`."""
    found = {**GOOD, **{name.replace("_", "-"): value for name, value in versions.items()}}
    monkeypatch.setattr(checks, "_version", found.get)
    return list(checks.packages())


def test_good_versions_pass(monkeypatch: pytest.MonkeyPatch):
    assert {finding.level for finding in installed(monkeypatch)} == {"ok"}


@pytest.mark.parametrize(
    ("package", "version", "part"),
    [
        ("lightning", "2.6.2", "lightning 2.6.2 is a malicious release"),
        ("pytorch_lightning", "2.6.3", "pytorch-lightning 2.6.3 is a malicious release"),
        ("hydra_core", "1.3.2", "hydra-core 1.3.2"),
        ("torch", None, "torch is missing"),
    ],
)
def test_bad_versions_are_errors(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, part: str):
    errors = [f for f in installed(monkeypatch, **{package: version}) if f.level == "error"]
    assert any(part in error.found for error in errors)
    assert all(error.advice for error in errors)


def test_a_malicious_release_stops_a_run_before_it_is_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(checks, "_version", {**GOOD, "lightning": "2.6.3"}.get)
    with pytest.raises(ValueError, match="malicious release"):
        checks.check_start(tmp_path)


def test_versions_are_those_of_the_package():
    project = tomllib.loads((Path(checks.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    for name, least in checks.NEEDED.items():
        wanted = f"{name}>={'.'.join(map(str, least))}"
        assert any(line.partition(",")[0] == wanted for line in project["project"]["dependencies"]), wanted


def test_warnings_are_for_the_first_rank_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    checks.check_start(tmp_path, rank=1)
    assert "locale" not in capsys.readouterr().err
    checks.check_start(tmp_path)
    assert "warning: locale: file names are ascii" in capsys.readouterr().err


def test_encodings_other_than_utf8_are_named(monkeypatch: pytest.MonkeyPatch):
    assert [finding.level for finding in checks.text_encoding()] == ["ok"]
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    (finding,) = checks.text_encoding()
    assert (finding.level, finding.found) == ("warning", "file names are ascii")


def test_small_shared_memory_is_a_warning(tmp_path: Path):
    assert [finding.level for finding in checks.shared_memory(tmp_path, least=0)] == ["ok"]
    assert [finding.level for finding in checks.shared_memory(tmp_path, least=1e18)] == ["warning"]
    assert not list(checks.shared_memory(tmp_path / "none"))


def test_a_directory_that_is_not_there_yet_is_judged_by_its_parent(tmp_path: Path):
    (finding,) = checks.disk(tmp_path / "runs" / "new")
    assert str(tmp_path) in finding.found
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_takes_no_file_is_an_error():
    (finding,) = checks.disk(Path("/proc/self"))
    assert finding.level == "error"
    assert "/proc/self cannot be written" in finding.found


def test_a_clock_apart_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    now = time.time()
    monkeypatch.setattr(checks.time, "time", lambda: now + 3600)
    assert any(f.check == "clock" and "3600 s apart" in f.found for f in checks.disk(tmp_path))
    monkeypatch.setattr(checks.time, "time", lambda: 1000.0)
    assert [finding.level for finding in checks.clock()] == ["error"]


def test_shards_that_cannot_be_opened_are_errors(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"<html>not here</html>" * 100)
    levels = [finding.level for finding in checks.shards([str(tmp_path / "a.tar"), str(tmp_path / "none.tar")])]
    assert levels[-1] == "error"
    assert levels[0] != "ok"


def test_a_check_that_fails_is_an_error_itself():
    def broken():
        raise OSError("no such device")

    (finding,) = checks.run_checks([broken])
    assert (finding.check, finding.level, finding.found) == ("broken", "error", "OSError: no such device")


def test_doctor_prints_every_check_and_ends_with_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with pytest.raises(SystemExit, match="1"):
        main(["doctor", "--outputs", str(tmp_path), "--shards", str(tmp_path / "none.tar")])
    lines = capsys.readouterr().out.splitlines()
    for check in ("torch", "devices", "disk", "clock", "locale", "network"):
        assert any(check in line for line in lines), check
    assert any(line.startswith("error") and "none.tar" in line for line in lines)


def nodes(number: int, change: Callable[[int], None] = lambda _: None) -> list[list[Finding]]:
    """What each of some processes, here threads, finds between the nodes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def one(rank: int) -> list[Finding]:
        change(rank)
        own = TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        return list(reachability.between_nodes(Process(rank, number, "127.0.0.1", store.port, 0, agent=True), own))

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_nodes_that_reach_each_other_are_listed():
    for findings in nodes(3):
        (finding,) = findings
        assert finding.level == "ok"
        assert f"3 processes on 1 node reach each other: {socket.gethostname()}" in finding.found


def test_every_node_learns_which_pair_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reachability, "_own_address", lambda process: f"127.0.0.{process.rank + 1}")
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    monkeypatch.setattr(reachability, "_reaches", lambda _: False)
    for findings in nodes(2):
        assert findings[0].level == "error"
        assert "node does not reach node at 127.0.0.1:" in findings[0].found


def test_a_process_that_does_not_appear_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reachability, "PATIENCE", reachability.timedelta(seconds=0.5))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = Process(0, 2, "127.0.0.1", store.port, 0, agent=True)
    (finding,) = reachability.between_nodes(process, store)
    assert finding.level == "error"
    assert f"rank 1 of 2 did not appear; those of {socket.gethostname()} did" in finding.found

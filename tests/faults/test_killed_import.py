"""An import that is killed goes on where it was, and leaves neither processes nor files behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.faults

RECORDS, PER_SHARD = 12_000, 200


def command(file, output):
    options = ["--text", "en", "--text", "zh", "--samples-per-shard", str(PER_SHARD), "--drop-duplicates"]
    program = [sys.executable, "-m", "altclip_train.cli", "data", "import", "parallel", str(file)]
    return [*program, *options, "--processes", "2", "--output", str(output)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def alive(group):
    """Processes of a session that still run."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-g", str(group)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "Z" not in line]


def test_killed_import(tmp_path):
    file = tmp_path / "pairs.tsv"
    lines = (f"text {i % 8_000}\t文字 {i % 8_000}\n" for i in range(RECORDS))
    file.write_text("en\tzh\n" + "".join(lines), encoding="utf-8")
    subprocess.run(command(file, tmp_path / "whole"), check=True, timeout=120)

    kills = 0
    for after in (1, 4, 20):
        process = subprocess.Popen(command(file, tmp_path / "out"), start_new_session=True)
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").glob("[0-9]*.tar"))) < after and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(timeout=10)
        deadline = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(process.pid)
    assert kills >= 2

    subprocess.run(command(file, tmp_path / "out"), check=True, timeout=120)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob(".tmp-*"))

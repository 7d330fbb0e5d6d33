"""An import that a launcher splits over processes gives the bytes of one that a single process made."""

import json
import subprocess
import sys

import pytest

from tests.workspace import environment

pytestmark = pytest.mark.distributed

RECORDS, PER_SHARD, DIFFERENT = 200, 15, 120


def start(launcher, file, output, per_shard=PER_SHARD):
    options = ["--text", "en", "--text", "zh", "--samples-per-shard", str(per_shard), "--drop-duplicates"]
    command = [sys.executable, "-m", *launcher, "altclip_train.cli", "data", "import", "parallel", str(file), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, "--output", str(output)], env=environment(), text=True, **pipes)


def run(launcher, file, output):
    process = start(launcher, file, output)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    return contents(output)


def contents(output):
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("input") / "pairs.tsv"
    lines = [f"text {i % DIFFERENT}\t文字 {i % DIFFERENT}\n" for i in range(RECORDS)]
    file.write_text("en\tzh\n" + "".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    return run([], file, tmp_path_factory.mktemp("outputs") / "alone")


def test_import_under_torchrun_equals_that_of_one_process(tmp_path, file, alone):
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    assert run(launcher, file, tmp_path / "launched") == alone
    report = json.loads(alone["import.json"])
    assert (report["shards_written"], report["written"]) == (-(-RECORDS // PER_SHARD), DIFFERENT)


def test_an_import_that_is_started_twice_at_once_equals_one(tmp_path, file, alone):
    processes = [start([], file, tmp_path / "out") for _ in range(2)]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    assert contents(tmp_path / "out") == alone


def test_of_different_imports_into_one_place_at_once_one_goes_on(tmp_path, file):
    processes = [start([], file, tmp_path / "out", per_shard) for per_shard in (10, 11, 12)]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    lost = [text for process, text in zip(processes, printed, strict=True) if process.returncode]
    assert len(lost) == 2, printed
    assert all("holds an import with other samples_per_shard" in text for text in lost)
    report = json.loads(contents(tmp_path / "out")["import.json"])
    assert report["read"] == RECORDS

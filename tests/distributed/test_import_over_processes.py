"""An import that a launcher splits over processes gives the bytes of one that a single process made."""

import json
import subprocess
import sys

import pytest

from tests.workspace import environment

pytestmark = pytest.mark.distributed

RECORDS, PER_SHARD, DIFFERENT = 200, 15, 120


def run(launcher, file, output):
    options = ["--text", "en", "--text", "zh", "--samples-per-shard", str(PER_SHARD), "--drop-duplicates"]
    command = [sys.executable, "-m", *launcher, "altclip_train.cli", "data", "import", "parallel", str(file), *options]
    done = subprocess.run(
        [*command, "--output", str(output)], env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


def test_import_under_torchrun_equals_that_of_one_process(tmp_path):
    file = tmp_path / "pairs.tsv"
    lines = [f"text {i % DIFFERENT}\t文字 {i % DIFFERENT}\n" for i in range(RECORDS)]
    file.write_text("en\tzh\n" + "".join(lines), encoding="utf-8")
    alone = run([], file, tmp_path / "alone")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    assert run(launcher, file, tmp_path / "launched") == alone
    report = json.loads(alone["import.json"])
    assert (report["shards_written"], report["written"]) == (-(-RECORDS // PER_SHARD), DIFFERENT)

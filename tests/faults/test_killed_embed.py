"""Embedding that is killed goes on where it was: no row is lost, none is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.unit.test_embedding import parallel, save_clip

pytestmark = pytest.mark.faults

SHARDS, SAMPLES = 4, 6_000
KILLED_AFTER = (0.01, 0.3, 0.6)  # of all rows


def start(clip: Path, shards: Path, log: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "altclip_train.cli", "embed", str(clip), f"{shards}/*.tar", "--for", "teacher"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen([*program, "--dtype", "float32"], env=environment, stdout=output, stderr=output)


def sidecars(shards: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: load_file(path) for path in sorted(shards.glob("*.safetensors"))}


def filled(shards: Path) -> int:
    total = 0
    for path in shards.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            total += int(file.get_tensor("filled").sum())
    return total


def test_killed_embedding(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip", hidden_size=64, num_hidden_layers=4)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        for shard in range(SHARDS):
            texts = [f"a photo of the cat number {i} of {shard}" for i in range(SAMPLES)]
            (tmp_path / name / f"{shard}.tar").write_bytes(parallel(*texts[:-1], [texts[-1], "dog"]))
    log = tmp_path / "log"
    rows = SHARDS * (SAMPLES + 1)
    assert start(clip, tmp_path / "whole", log).wait(timeout=240) == 0, log.read_text()
    assert filled(tmp_path / "whole") == rows

    reached = [0]
    for after in KILLED_AFTER:
        process = start(clip, tmp_path / "killed", log)
        deadline = time.monotonic() + 120
        while filled(tmp_path / "killed") < max(after * rows, reached[-1] + 1) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "it was done before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        reached.append(filled(tmp_path / "killed"))
    assert reached == sorted(set(reached))  # each run added rows, and no row was lost
    assert reached[-1] < rows

    assert start(clip, tmp_path / "killed", log).wait(timeout=240) == 0, log.read_text()
    whole, killed = sidecars(tmp_path / "whole"), sidecars(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, expected in whole.items():
        for tensor in ("offsets", "filled"):
            np.testing.assert_array_equal(killed[name][tensor], expected[tensor])
        np.testing.assert_allclose(killed[name]["embeddings"], expected["embeddings"], atol=1e-6)
        assert np.abs(killed[name]["embeddings"]).sum(axis=1).min() > 0
    last = log.read_text().splitlines()[-1]
    assert last == f"{rows:,} of {rows:,} texts of {SHARDS} shards are embedded, {rows - reached[-1]:,} of them now"

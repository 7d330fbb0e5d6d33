"""torchrun's processes are one run, on one node and on several: one directory, and what one process trains."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.test_training_over_ranks import assert_same_run
from tests.workspace import REPOSITORY, Run, Workspace, environment

pytestmark = pytest.mark.distributed

# Starts the command of a run when its rank has slept as many seconds: clocks of nodes never agree.
LATE = f"""
import os, runpy, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
time.sleep(2 * int(os.environ["RANK"]))
sys.argv[0] = {str(REPOSITORY / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_on_nodes(workspace: Workspace, nodes: int, per_node: int, *overrides: str) -> Path:
    """Two dated directories, if the ranks looked at their own clocks. All "nodes" are this machine."""
    script = workspace.new_file()
    script.write_text(LATE)
    arguments = workspace.overrides(*overrides, f"trainer.num_nodes={nodes}", f"trainer.devices={per_node}")
    place = ["--nnodes", str(nodes), "--nproc-per-node", str(per_node), "--master-addr", "127.0.0.1"]
    launch = [sys.executable, "-m", "torch.distributed.run", *place, "--master-port", str(free_port())]
    processes = [
        subprocess.Popen(
            [*launch, "--node-rank", str(node), str(script), *arguments],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(nodes)
    ]
    try:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * nodes, "\n".join(outputs)
    return Path("\n".join(outputs).partition("run directory: ")[2].splitlines()[0])


def test_two_nodes_of_torchrun_are_one_run_that_equals_one_process(workspace: Workspace):
    outputs = workspace.new_directory()
    overrides = ["stage=teacher", "data.epoch_samples=16", "trainer.max_epochs=2"]
    run = run_on_nodes(workspace, 2, 1, *overrides, f"outputs={outputs}")
    assert [path.name for path in (outputs / "teacher").iterdir() if not path.is_symlink()] == [run.name]
    assert_same_run(Run(run), workspace.train(*overrides))


def test_two_nodes_of_two_sharded_devices_equal_one_process(workspace: Workspace):
    overrides = ["stage=teacher", "data.epoch_samples=16", "trainer.max_epochs=2"]
    run = run_on_nodes(workspace, 2, 2, *overrides, "strategy=fsdp2", f"outputs={workspace.new_directory()}")
    assert_same_run(Run(run), workspace.train(*overrides))

"""Processes of torchrun and of SLURM are one run: one directory, and what one process trains."""

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
time.sleep(2 * int(os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0"))))
sys.argv[0] = {str(REPOSITORY / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(commands: list[list[str]], variables: list[dict[str, str]]) -> tuple[list[int], str]:
    """Exit codes of these processes, all running at once, and what they print."""
    processes = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**environment(), **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, own in zip(commands, variables, strict=True)
    ]
    try:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(outputs)


def started(commands: list[list[str]], variables: list[dict[str, str]]) -> str:
    """What these processes print; they must end well."""
    codes, output = ended(commands, variables)
    assert codes == [0] * len(commands), output
    return output


def torchrun_commands(nodes: int, per_node: int, *command: str) -> list[list[str]]:
    """All "nodes" are this machine."""
    place = ["--nnodes", str(nodes), "--nproc-per-node", str(per_node), "--master-addr", "127.0.0.1"]
    launch = [sys.executable, "-m", "torch.distributed.run", *place, "--master-port", str(free_port())]
    return [[*launch, "--node-rank", str(node), *command] for node in range(nodes)]


def torchrun(nodes: int, per_node: int, *command: str) -> str:
    return started(torchrun_commands(nodes, per_node, *command), [{}] * nodes)


def slurm_tasks(tasks: int) -> list[dict[str, str]]:
    """Variables of tasks as `srun` would start them on one node."""
    job = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "run", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks), "MASTER_PORT": str(free_port())}
    return [{**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(tasks)]


def late_script(workspace: Workspace) -> str:
    script = workspace.new_file()
    script.write_text(LATE)
    return str(script)


def run_directory(output: str) -> Path:
    assert output.count("run directory: ") == 1
    return Path(output.partition("run directory: ")[2].splitlines()[0])


RUN = ["stage=teacher", "data.epoch_samples=16", "trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def alone(workspace: Workspace) -> Run:
    return workspace.train(*RUN)


@pytest.mark.parametrize(("per_node", "strategy"), [(1, "auto"), (2, "fsdp2")])
def test_two_nodes_of_torchrun_are_one_run_that_equals_one_process(
    workspace: Workspace, alone: Run, per_node: int, strategy: str
):
    outputs = workspace.new_directory()
    devices = ["trainer.num_nodes=2", f"trainer.devices={per_node}", f"strategy={strategy}", f"outputs={outputs}"]
    output = torchrun(2, per_node, late_script(workspace), *workspace.overrides(*RUN, *devices))
    run = run_directory(output)
    assert [path.name for path in (outputs / "teacher").iterdir() if not path.is_symlink()] == [run.name]
    assert_same_run(Run(run), alone)
    share = 8 // (2 * per_node)
    assert f"global batch: 8, of which {share} on each of {2 * per_node} devices" in output


def test_tasks_of_slurm_are_one_run_that_equals_one_process(workspace: Workspace, alone: Run):
    """Without SLURM: as `srun` would start them."""
    outputs, script = workspace.new_directory(), late_script(workspace)
    command = [sys.executable, script, *workspace.overrides(*RUN, "trainer.devices=2", f"outputs={outputs}")]
    run = run_directory(started([command] * 2, slurm_tasks(2)))
    assert [path.name for path in (outputs / "teacher").iterdir() if not path.is_symlink()] == [run.name]
    assert_same_run(Run(run), alone)


def test_doctor_tries_the_processes_of_a_launcher():
    output = torchrun(2, 1, "-m", "altclip_train.cli", "doctor")
    assert "2 processes on 1 node reach each other" in output
    assert "a sum over 2 processes" in output


SMALLER = """
import os
from altclip_train.training import sizes
sizes.largest_that_fits = lambda *_, **__: [7, 3][int(os.environ["RANK"])]  # as if the second device had less memory
"""


def test_a_size_that_is_measured_is_that_of_the_rank_with_the_least_memory(workspace: Workspace):
    directory = workspace.new_directory()
    script = workspace.new_file()
    script.write_text(LATE.replace("sys.argv[0] =", SMALLER + "sys.argv[0] ="))
    place = f"hydra.run.dir={directory}"
    overrides = workspace.overrides("stage=teacher", "batch_size=auto", "trainer.devices=2", place)
    output = torchrun(1, 2, str(script), *overrides)
    assert output.count("batch_size=auto: 3 samples on each of 2 device(s), so data.global_batch_size=6") == 1
    assert "global_batch_size: 6" in (directory / "config.yaml").read_text()


def test_lightnings_own_processes_take_the_number_of_their_parent(workspace: Workspace):
    run = workspace.run("stage=teacher", "stage.micro_batch=auto", "trainer.devices=2")
    assert "micro_batch: null" in (run.directory / "config.yaml").read_text()
    assert list(run.metrics("train/loss")) == [0, 1, 2, 3]

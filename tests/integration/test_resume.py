"""A run that stops anywhere and is resumed ends as one that was never stopped."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from tests.workspace import Run, TrainedRun, Workspace

# Four epochs of three steps; a checkpoint after every step.
EPOCHS = ["data.epoch_samples=24", "trainer.max_epochs=4", "trainer.max_steps=-1"]
EVERY_STEP = ["callbacks.checkpoints.every_n_train_steps=1", "callbacks.checkpoints.keep=null"]
LAST = 12


class Stop(Exception):  # noqa: N818 - no error
    """Ends a run as a kill would."""


class StopAfter(L.Callback):
    """Ends a run right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise Stop


class RecordKeys(L.Callback):
    """Writes down the samples that every step is trained on."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, *_) -> None:  # noqa: ARG002
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step} {' '.join(batch.keys)}\n")


def record(file: Path) -> str:
    return f"+callbacks.record={{_target_: tests.integration.test_resume.RecordKeys, file: {file}}}"


def stop_after(step: int) -> str:
    return f"+callbacks.stop={{_target_: tests.integration.test_resume.StopAfter, step: {step}}}"


def assert_equal_runs(resumed: Run, unbroken: Run) -> None:
    ours, theirs = resumed.checkpoint(LAST), unbroken.checkpoint(LAST)
    assert ours["global_step"] == theirs["global_step"] == LAST
    assert ours["epoch"] == theirs["epoch"]
    for name, tensor in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], tensor), name
    assert resumed.learning_rates() == unbroken.learning_rates()
    for column in ("train/loss", "val/other_mse"):
        assert resumed.metrics(column) == unbroken.metrics(column)


@pytest.fixture(scope="module")
def unbroken(workspace: Workspace) -> TrainedRun:
    directory = workspace.new_directory()
    directory.mkdir(parents=True)
    return workspace.train("stage=teacher", *EPOCHS, *EVERY_STEP, record(directory / "keys"), directory=directory)


# In the first epoch, on its last step, on the first step of the second epoch, in its middle, on the last but one.
@pytest.mark.parametrize("step", [1, 3, 4, 5, 11])
def test_resumed_run_equals_the_unbroken_one(workspace: Workspace, unbroken: TrainedRun, step: int):
    directory = workspace.new_directory()
    directory.mkdir(parents=True)
    overrides = ["stage=teacher", *EPOCHS, *EVERY_STEP, record(directory / "keys")]
    with pytest.raises(Stop):
        workspace.train(*overrides, stop_after(step), directory=directory)
    resumed = workspace.train(*overrides, f"resume={directory}", directory=directory)
    assert_equal_runs(resumed, unbroken)
    assert list(resumed.metrics("train/loss")) == list(range(LAST))
    assert (directory / "keys").read_text() == (unbroken.directory / "keys").read_text()


def test_resume_with_a_loader_process_equals_the_unbroken_run_without(workspace: Workspace, unbroken: TrainedRun):
    directory = workspace.new_directory()
    overrides = ["stage=teacher", *EPOCHS, *EVERY_STEP]
    with pytest.raises(Stop):
        workspace.train(*overrides, stop_after(5), directory=directory)
    resumed = workspace.train(*overrides, "data.num_workers=1", f"resume={directory}", directory=directory)
    assert_equal_runs(resumed, unbroken)


def test_stage_two_resumes_exactly(workspace: Workspace):
    start = workspace.train("stage=teacher", "trainer.max_steps=2")
    overrides = ["stage=contrastive", f"start={start.model}", *EPOCHS, *EVERY_STEP]
    unbroken = workspace.train(*overrides)
    directory = workspace.new_directory()
    with pytest.raises(Stop):
        workspace.train(*overrides, stop_after(7), directory=directory)
    assert_equal_runs(workspace.train(*overrides, f"resume={directory}", directory=directory), unbroken)


def test_validation_interval_in_steps_survives_a_resume(workspace: Workspace):
    overrides = ["stage=teacher", *EPOCHS, *EVERY_STEP]
    overrides += ["trainer.val_check_interval=2", "trainer.check_val_every_n_epoch=null"]
    unbroken = workspace.train(*overrides)
    directory = workspace.new_directory()
    with pytest.raises(Stop):
        workspace.train(*overrides, stop_after(5), directory=directory)
    resumed = workspace.train(*overrides, f"resume={directory}", directory=directory)
    assert_equal_runs(resumed, unbroken)


def test_finished_run_can_be_trained_further(workspace: Workspace):
    overrides = ["stage=teacher", "data.epoch_samples=24", "trainer.max_steps=-1"]
    first = workspace.train(*overrides, "trainer.max_epochs=2")
    before = (first.model / "model.safetensors").read_bytes()
    longer = workspace.train(*overrides, "trainer.max_epochs=3", f"resume={first.directory}", directory=first.directory)
    assert list(longer.metrics("train/loss")) == list(range(9))
    assert (longer.model / "model.safetensors").read_bytes() != before


def test_resume_on_other_data_is_refused_unless_forced(workspace: Workspace):
    shard = workspace.first_samples("parallel_texts/train/000000.tar", 24)
    overrides = ["stage=teacher", f"data.parallel_texts=[{{urls: {shard}}}]", "data.val_texts=[]"]
    run = workspace.train(*overrides, "trainer.max_steps=2")
    other = workspace.first_samples("parallel_texts/train/000000.tar", 25)
    with shard.open("wb") as file:  # as many samples, other bytes
        file.write(rewritten(other, drop=1))
    resume = [*overrides, f"resume={run.directory}"]
    with pytest.raises(ValueError, match="the checkpoint was made on other data"):
        workspace.train(*resume, directory=run.directory)
    forced = workspace.train(*resume, "resume_force=true", directory=run.directory)
    assert list(forced.metrics("train/loss")) == list(range(4))


def test_dropout_goes_on_exactly(workspace: Workspace):
    """Stock Lightning keeps no random state: the losses after a resume are other ones."""
    start = workspace.train("stage=teacher", "trainer.max_steps=2")
    overrides = ["stage=contrastive", f"start={start.model}", "stage.dropout=0.3", *EPOCHS, *EVERY_STEP]
    unbroken = workspace.train(*overrides)
    directory = workspace.new_directory()
    with pytest.raises(Stop):
        workspace.train(*overrides, stop_after(5), directory=directory)
    resumed = workspace.train(*overrides, f"resume={directory}", directory=directory)
    assert_equal_runs(resumed, unbroken)


def rewritten(shard: Path, drop: int) -> bytes:
    """A tar without its first samples."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(shard) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        for member in old.getmembers()[drop:]:
            new.addfile(member, old.extractfile(member))
    return buffer.getvalue()

"""Sharded checkpoints: read by one process, and never a way to run code. What many ranks do is a distributed test."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from altclip_train.training.manifest import problem
from altclip_train.training.sharded import FullyShardedStrategy, is_sharded, read_rest, read_weights, write_sharded
from tests.faults.test_hostile_weights import Payload

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tensors = {"state_dict.w": torch.arange(6.0).view(2, 3), "optimizer_0.state.w.step": torch.tensor(3.0)}
    write_sharded(tensors, {"global_step": 3}, tmp_path / "step.ckpt")
    return tmp_path / "step.ckpt"


def test_one_process_reads_whole_weights_and_the_rest(checkpoint: Path):
    assert is_sharded(checkpoint)
    assert read_rest(checkpoint) == {"global_step": 3}
    ((name, tensor),) = read_weights(checkpoint).items()
    assert name == "w"
    assert tensor.equal(torch.arange(6.0).view(2, 3))
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["step.ckpt", "step.ckpt.json"]
    assert problem(checkpoint) is None


def test_its_manifest_knows_every_file(checkpoint: Path):
    with (checkpoint / "__0_0.distcp").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert "__0_0.distcp" in str(problem(checkpoint))


def test_failed_write_leaves_the_older_checkpoint(checkpoint: Path):
    class Unwritable(torch.Tensor):
        def __reduce_ex__(self, *_):
            raise OSError("disk full")

    with pytest.raises(OSError, match=r"step\.ckpt could not be written: rank 0 failed with .*disk full"):
        write_sharded({"state_dict.w": torch.zeros(2).as_subclass(Unwritable)}, {}, checkpoint)
    assert read_rest(checkpoint) == {"global_step": 3}


@pytest.mark.parametrize("file", [".metadata", "rest.pt"])
def test_code_in_a_checkpoint_is_never_run(checkpoint: Path, tmp_path: Path, file: str):
    (checkpoint / file).write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(ValueError, match=rf"{file} is damaged"):
        read_weights(checkpoint) if file == ".metadata" else read_rest(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_objects_among_the_tensors_are_refused(tmp_path: Path):
    """torch would unpickle them."""
    import torch.distributed.checkpoint as dcp

    dcp.save({"state_dict.w": Payload(tmp_path / "ran")}, checkpoint_id=tmp_path / "other")
    with pytest.raises(ValueError, match=r"names state_dict\.w, which is no tensor"):
        read_weights(tmp_path / "other")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", [".metadata", "rest.pt"])
def test_a_checkpoint_that_lacks_a_file_is_named(checkpoint: Path, file: str):
    (checkpoint / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"step\.ckpt is no sharded checkpoint: it has no {file}"):
        read_weights(checkpoint) if file == ".metadata" else read_rest(checkpoint)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_precisions_without_float32_weights_are_refused_with_those_that_go(precision: str):
    with pytest.raises(ValueError, match=f"precision={precision} .*pass one of 32-true, bf16-mixed"):
        FullyShardedStrategy(precision=precision)

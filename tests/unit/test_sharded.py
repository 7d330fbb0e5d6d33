"""Sharded checkpoints: read by one process, and never a way to run code. What many ranks do is a distributed test."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from altclip_train.distributed import whole
from altclip_train.models.layers import WordEmbedding
from altclip_train.muon import Muon
from altclip_train.optim import parameter_groups
from altclip_train.sharding import shard
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


class Tower(L.LightningModule):
    """One matrix for Muon, word vectors, a scalar, and a frozen part that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.linear = WordEmbedding(5, 4), nn.Linear(4, 3)
        nn.init.normal_(self.words.weight)
        self.scale, self.frozen = nn.Parameter(torch.tensor(2.0)), nn.Linear(2, 2).requires_grad_(False)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.words(ids)) * self.scale


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicas", "shards"))
    torch.distributed.destroy_process_group()


def sharded(mesh: DeviceMesh) -> tuple[FullyShardedStrategy, Tower]:
    tower, strategy = Tower(), FullyShardedStrategy(precision="32-true")
    shard(tower, mesh, methods=["encode"])
    strategy._lightning_module = tower
    strategy.optimizers = [Muon(parameter_groups(tower, 0.1), lr=0.1)]
    return strategy, tower


def step(strategy: FullyShardedStrategy, tower: Tower) -> None:
    strategy.optimizers[0].zero_grad()
    tower.encode(torch.tensor([1, 3])).square().sum().backward()
    strategy.optimizers[0].step()


def checkpoint_of(strategy: FullyShardedStrategy) -> dict[str, Any]:
    state = {name: value for name, value in strategy.lightning_module_state_dict().items() if "frozen" not in name}
    return {"state_dict": state, "optimizer_states": [strategy.optimizer_state(strategy.optimizers[0])], "step": 1}


@pytest.mark.filterwarnings("ignore")  # of torch, about names that it gives up later
def test_weights_and_optimizer_go_on_where_they_were(mesh: DeviceMesh, tmp_path: Path):
    first, tower = sharded(mesh)
    step(first, tower)
    first.save_checkpoint(checkpoint_of(first), tmp_path / "step.ckpt")
    step(first, tower)

    second, resumed = sharded(mesh)
    loaded = second.load_checkpoint(tmp_path / "step.ckpt")
    assert loaded["step"] == 1
    assert loaded["state_dict"].keys() == {"words.weight", "linear.weight", "linear.bias", "scale"}
    second.load_model_state_dict(loaded, strict=False)  # a stage puts its frozen weights back
    second.load_optimizer_state_dict(loaded)
    step(second, resumed)
    for (name, wanted), (_, found) in zip(tower.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(whole(found), whole(wanted)), name


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_another_model_is_refused(mesh: DeviceMesh, checkpoint: Path):
    strategy, _ = sharded(mesh)
    with pytest.raises(ValueError, match=r"step\.ckpt is of another model or optimizer: only one of them has .*linear"):
        strategy.load_checkpoint(checkpoint)

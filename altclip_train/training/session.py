"""The thin layer between Hydra's configuration and a run: checks, and what the run leaves."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from altclip_train.configuration import check_configuration
from altclip_train.data.sampler import own_places
from altclip_train.data.urls import shown
from altclip_train.files import written_whole
from altclip_train.model_card import directory_usage, write_card
from altclip_train.models import AltCLIPModel, CLIPModel
from altclip_train.sharding import whole_weights
from altclip_train.training import runs
from altclip_train.training.changes import check_unchanged
from altclip_train.training.facts import read_config, read_run, software
from altclip_train.training.launch import own_rank
from altclip_train.training.lock import RunLock
from altclip_train.training.manifest import newest_whole


def set_matmul_precision(precision: str) -> None:
    """Of float32 products, by torch's names. Raises ValueError for another name, which torch would only warn of."""
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"float32_matmul_precision={precision!r}: expected 'highest', 'high' or 'medium'")
    torch.set_float32_matmul_precision(precision)


def checked_configuration(config: DictConfig) -> dict[str, Any]:
    """The plain configuration. Raises ValueError naming a key that has no value, or one that nothing takes."""
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{', '.join(missing)} has no value: pass {'=... '.join(missing)}=...")
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    check_configuration(plain, own_modules=config.own_modules)
    return plain


class TrainingRun(L.Callback):
    """One run directory: what it was made from, where it resumes, what it ends with.

    It must be the first callback, so that the model is safe before a benchmark of another callback can fail.
    """

    def __init__(self, directory: Path, config: DictConfig, *, stage: str) -> None:
        ignore_expected_warnings()
        plain = checked_configuration(config)
        set_matmul_precision(config.float32_matmul_precision)
        self.directory = directory
        self._config = cast(dict[str, Any], shown(plain))  # urls may be signed or hold passwords
        self._resume_force: bool = config.resume_force
        self._ended = False
        self._lock: RunLock | None = None
        if own_rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(directory)
        try:
            self._begin(config, stage)
        except BaseException:
            self.close()
            raise

    def _begin(self, config: DictConfig, stage: str) -> None:
        """Choose the checkpoint to go on from, refuse what does not fit it, and write what the run is made from."""
        resumes = config.resume is not None and runs.newest_checkpoint(self.directory) is not None
        self.checkpoint = newest_whole_checkpoint(self.directory) if resumes else None
        description = runs.Description(
            stage=stage, clip=config.clip, student=config.student, start=config.data.get("model")
        )
        if own_rank() != 0:
            return
        text = OmegaConf.to_yaml(OmegaConf.create(self._config))
        if self.checkpoint is not None and not self._resume_force:
            runs.check_same(self.directory, description)
            check_unchanged(read_config(self.directory), yaml.safe_load(text), run=str(self.directory))
        with written_whole(self.directory / "config.yaml") as file:
            file.write_text(text, encoding="utf-8")
        runs.describe_run(self.directory, description)
        print(f"run directory: {self.directory}")
        if description.start is not None:
            print(f"continues from: {description.start}")
        if self.checkpoint is not None:
            print(f"resumes from: {self.checkpoint}")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        trainer.datamodule.accept_other_data = self._resume_force  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._software = software()
        if trainer.is_global_zero:
            samples = trainer.datamodule.train_set.samples  # type: ignore[attr-defined]
            runs.record(self.directory, software=self._software, samples=samples)
            batch = trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
            rate = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
            print(batch_line(batch, trainer.world_size, rate))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        checkpoint["run"] = {"config": self._config, "software": self._software, "world_size": trainer.world_size}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model directory in one step and let ``latest`` point to the run."""
        self._ended = True
        if trainer.is_global_zero:
            _ = cast(SavedModule, pl_module).trained_model  # assembled first: loading puts weights back into shards
        with whole_weights(pl_module):
            self._save_model(trainer, pl_module)
        if trainer.is_global_zero:
            self._write_card(trainer, pl_module)
        trainer.strategy.barrier("model directory written")

    def _save_model(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in pl_module.parameters()):
            raise ValueError(
                f"the trained weights are not finite, so {self.directory / runs.MODEL} is not written: "
                "look for the step in metrics.csv; a lower stage.optimizer.lr is the usual cure"
            )
        if trainer.is_global_zero:
            model, incomplete = self.directory / runs.MODEL, self.directory / f"{runs.MODEL}.incomplete"
            shutil.rmtree(incomplete, ignore_errors=True)  # of a run that was killed here
            cast(SavedModule, pl_module).save_model(incomplete)
            shutil.rmtree(model, ignore_errors=True)  # of a finished run that was trained further
            os.replace(incomplete, model)
            runs.point_latest_to(self.directory)
            print(f"model directory: {model}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the card again: by now the benchmarks of the other callbacks have their results."""
        if not self._ended:  # resumed at its last step: Lightning finds nothing to train, and leaves out the end too
            trainer.fit_loop.on_run_end()
        if trainer.is_global_zero and runs.is_finished(self.directory):
            self._write_card(trainer, pl_module)

    def close(self) -> None:
        """Let another process train in the directory."""
        if self._lock is not None:
            self._lock.release()

    def _write_card(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        runs.record(self.directory, steps=trainer.global_step)
        model = cast(SavedModule, module).trained_model
        write_card(self.directory / runs.MODEL, model, read_run(self.directory), directory_usage(model))


def newest_whole_checkpoint(run: Path) -> Path:
    """The newest checkpoint whose contents verify. Raises ValueError when there is none."""
    newest, rejected = newest_whole(run / runs.CHECKPOINTS)
    for path, reason in rejected.items() if own_rank() == 0 else ():
        print(f"warning: {path.name} is passed over: {reason}")
    if newest is None:
        raise ValueError(f"no checkpoint in {run / runs.CHECKPOINTS} is whole; start a new run")
    return newest


def batch_line(global_batch_size: int, devices: int, learning_rate: float) -> str:
    """What each device gets of a batch, and the rule for the learning rate, in words."""
    places = (own_places(global_batch_size, rank, devices) for rank in range(devices))
    each = " or ".join(map(str, sorted({end - begin for begin, end in places})))
    return (
        f"global batch: {global_batch_size}, of which {each} on each of {devices} device{'s' * (devices > 1)}; "
        f"peak learning rate: {learning_rate:g}. Neither depends on the number of devices"
    )


class SavedModule(Protocol):
    """What a stage offers to be kept."""

    @property
    def trained_model(self) -> AltCLIPModel | CLIPModel: ...

    def save_model(self, directory: Path) -> None: ...


def ignore_expected_warnings() -> None:
    """Leave out warnings and notes that every run would print and that nobody can act upon."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its import has set another level
    # Lightning calls torch's older spelling of tree leaves.
    warnings.filterwarnings("ignore", r"`?isinstance\(treespec, LeafSpec\)`? is deprecated", FutureWarning)
    # data.val_texts=[] is a way to say that there is no validation.
    warnings.filterwarnings("ignore", r"Total length of `list` across ranks is zero")
    # Trials of a size do not validate.
    warnings.filterwarnings("ignore", r"You defined a `validation_step` but have no `val_dataloader`")
    # Steps are counted over the whole run, not in each epoch.
    warnings.filterwarnings("ignore", r"The number of training batches .* is smaller than the logging interval")
    # A resumed run goes on in its own directory.
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
    # The frozen parts of a stage are meant to be in eval mode.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")

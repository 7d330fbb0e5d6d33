"""The thin layer between Hydra's configuration and a run: checks, and what the run leaves."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from altclip_train.configuration import check_configuration
from altclip_train.data.urls import shown
from altclip_train.model_card import directory_usage, write_card
from altclip_train.models import AltCLIPModel, CLIPModel
from altclip_train.training import runs
from altclip_train.training.facts import read_run, software


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
    check_configuration(plain)
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
        self.checkpoint = runs.newest_checkpoint(directory) if config.resume is not None else None
        description = runs.Description(
            stage=stage, clip=config.clip, student=config.student, start=config.data.get("model")
        )
        if self.checkpoint is not None:
            runs.check_same(directory, description)
        if _rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            without_secrets = OmegaConf.create(shown(plain))  # urls may be signed or hold passwords
            (directory / "config.yaml").write_text(OmegaConf.to_yaml(without_secrets), encoding="utf-8")
            runs.describe_run(directory, description)
            print(f"run directory: {directory}")
            if description.start is not None:
                print(f"continues from: {description.start}")
            if self.checkpoint is not None:
                print(f"resumes from: {self.checkpoint}")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if trainer.is_global_zero:
            samples = trainer.datamodule.train_set.samples  # type: ignore[attr-defined]
            runs.record(self.directory, software=software(), samples=samples)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the model directory in one step and let ``latest`` point to the run."""
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
            self._write_card(trainer, pl_module)
        trainer.strategy.barrier("model directory written")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the card again: by now the benchmarks of the other callbacks have their results."""
        if trainer.is_global_zero and runs.is_finished(self.directory):
            self._write_card(trainer, pl_module)

    def _write_card(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        runs.record(self.directory, steps=trainer.global_step)
        model = cast(SavedModule, module).trained_model
        write_card(self.directory / runs.MODEL, model, read_run(self.directory), directory_usage(model))


class SavedModule(Protocol):
    """What a stage offers to be kept."""

    @property
    def trained_model(self) -> AltCLIPModel | CLIPModel: ...

    def save_model(self, directory: Path) -> None: ...


def _rank() -> int:
    """This process among all of the run, before Lightning has set up their group: as the launcher says."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def ignore_expected_warnings() -> None:
    """Leave out warnings that every run would print and that nobody can act upon."""
    # Lightning calls torch's older spelling of tree leaves.
    warnings.filterwarnings("ignore", r"`?isinstance\(treespec, LeafSpec\)`? is deprecated", FutureWarning)
    # data.val_texts=[] is a way to say that there is no validation.
    warnings.filterwarnings("ignore", r"Total length of `list` across ranks is zero")
    # Steps are counted over the whole run, not in each epoch.
    warnings.filterwarnings("ignore", r"The number of training batches .* is smaller than the logging interval")
    # A resumed run goes on in its own directory.
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
    # The frozen parts of a stage are meant to be in eval mode.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")

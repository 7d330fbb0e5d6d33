"""The thin layer between Hydra's configuration and a run: resolvers, checks, errors in one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from altclip_train.configuration import check_configuration, unknown_key_hint
from altclip_train.training import runs

logger = logging.getLogger(__name__)


def register_resolvers() -> None:
    """Names that the YAML files use in ``${...}``."""
    OmegaConf.register_new_resolver("run_directory", runs.run_directory, replace=True)
    OmegaConf.register_new_resolver("start_from", runs.start_from, replace=True)
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)


def fastest_precision() -> str:
    """bf16 autocast with fp32 master weights where the device computes bf16 natively, else fp32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    has_bf16 = "avx512_bf16" in torch.backends.cpu.get_cpu_capability().lower() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


class TrainingRun:
    """One run directory: what it was made from, where it resumes, what it ends with."""

    def __init__(self, directory: Path, config: DictConfig) -> None:
        self.directory = directory
        self.checkpoint = runs.newest_checkpoint(directory) if config.resume is not None else None
        plain = OmegaConf.to_container(config, resolve=True)
        check_configuration(plain)
        if _is_main_process():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
            stage = str(config.stage._target_).rpartition(".")[2]
            names = {"TeacherLearning": "teacher", "ContrastiveLearning": "contrastive"}
            description = {"stage": names.get(stage, stage), "clip": config.clip, "student": config.student}
            start = config.data.get("model")
            runs.describe_run(directory, {**description, "start": start, "seed": config.seed})
            print(f"run directory: {directory}")
            if start is not None:
                print(f"continues from: {start}")
            if self.checkpoint is not None:
                print(f"resumes from: {self.checkpoint}")

    def finish(self, trainer: L.Trainer, stage: Any) -> None:
        """Write the model directory in one step and let ``latest`` point to the run."""
        if trainer.is_global_zero:
            incomplete = self.directory / f"{runs.MODEL}.incomplete"
            stage.save_model(incomplete)
            os.replace(incomplete, self.directory / runs.MODEL)
            runs.point_latest_to(self.directory)
            print(f"model directory: {self.directory / runs.MODEL}")
        trainer.strategy.barrier("model directory written")


def run_main(main: Callable[[], None], config_directory: Path, config_name: str) -> None:
    """Run a Hydra entry point; explain a mistyped key by its nearest neighbour."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        main()
    except SystemExit as exit_:
        if exit_.code not in (0, None):
            _hint_at_typos(config_directory, config_name)
        raise


def _hint_at_typos(config_directory: Path, config_name: str) -> None:
    """Name the override whose key does not exist. Hydra itself advises to add it with a plus sign."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    overrides = [arg for arg in sys.argv[1:] if "=" in arg and not arg.startswith("-")]
    groups = {path.name for path in config_directory.iterdir() if path.is_dir()}
    chosen = [o for o in overrides if o.split("=")[0] in groups]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_directory.resolve()), version_base="1.3"):
            config = OmegaConf.to_container(compose(config_name, chosen), resolve=False)
    except Exception:
        return
    assert isinstance(config, dict)
    for override in overrides:
        key = override.split("=")[0]
        if key[0] not in "+~" and key not in groups and not key.startswith("hydra."):
            hint = unknown_key_hint(key, {str(k): v for k, v in config.items()})
            if not hint.endswith(" exists"):
                print(f"\n{override}: {hint}", file=sys.stderr)


def _is_main_process() -> bool:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0

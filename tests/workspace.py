"""A tiny starter build, a tiny random CLIP, and the training command on them, in this process or as a real one."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict, read_write

from altclip_train.data.starter import StarterSettings, build_starter
from altclip_train.models import build_clip
from altclip_train.processing import CLIPTokenizer, ImageTransform
from altclip_train.training.resolvers import register_resolvers
from train import train

REPOSITORY = Path(__file__).parents[1]
IMAGE_SIZE = 32

TINY_STARTER = StarterSettings(
    concepts=12,
    unseen_concepts=3,
    held_out_drawings=4,
    singles=40,
    scenes=30,
    texts=3700,
    validation_texts=10,
    retrieval_test=6,
    retrieval_val=2,
    vocab_size=4000,
    clip_vocab_size=900,
)
# Widths of vision tower, teacher, student and joint space all differ, so that none can stand in for another.
TINY_VISION: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "patch_size": 16,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 28,
}
TINY_TEACHER: dict[str, Any] = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 77,
    "eos_token_id": 2,
}
TINY_STUDENT: dict[str, Any] = {
    "vocab_size": TINY_STARTER.vocab_size,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 36,
}
JOINT_WIDTH = 12
BATCH = 8


@dataclass(frozen=True)
class Run:
    """What a run leaves."""

    directory: Path

    @property
    def model(self) -> Path:
        return self.directory / "model"

    def metrics(self, name: str) -> dict[int, float]:
        """Logged values by step."""
        with (self.directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}

    def learning_rates(self) -> dict[int, float]:
        """Those of the first group by step, whatever the optimizer."""
        with (self.directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
            (name,) = (column for column in next(csv.reader(file)) if re.fullmatch(r"lr-\w+/pg1", column))
        return self.metrics(name)

    def checkpoint(self, step: int) -> dict[str, Any]:
        return torch.load(self.directory / f"checkpoints/step_{step:09d}.ckpt", weights_only=True)


@dataclass(frozen=True)
class TrainedRun(Run):
    """A run of this process, with its objects."""

    trainer: L.Trainer

    @property
    def stage(self) -> Any:
        return self.trainer.lightning_module


class Workspace:
    """Everything that a tiny run needs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.starter = build_starter(root / "starter", settings=TINY_STARTER, workers=1)
        self.clip = self.build_clip(root / "clip")
        self._numbers = count()

    def build_clip(self, directory: Path, **text: Any) -> Path:
        """A CLIP with random weights and the starter data's English tokenizer."""
        tokenizer = CLIPTokenizer.from_pretrained(self.starter / "clip_tokenizer")
        torch.manual_seed(0)
        clip = build_clip(
            vision=TINY_VISION,
            text={**TINY_TEACHER, "vocab_size": tokenizer.vocab_size, **text},
            projection_dim=JOINT_WIDTH,
            logit_scale_init_value=2.6592,
        )
        clip.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        ImageTransform(size=IMAGE_SIZE, crop_size=IMAGE_SIZE).save_pretrained(directory)
        return directory

    def overrides(self, *more: str) -> list[str]:
        """Overrides that make every stage tiny; ``more`` wins."""
        tiny = {
            "clip": self.clip,
            "starter": self.starter,
            "outputs": self.root / "outputs",
            "eval": "[]",
            "own_modules": "[tests]",
            "data.global_batch_size": BATCH,
            "data.num_workers": 0,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.precision": "32-true",
            "trainer.max_steps": 4,
            "trainer.log_every_n_steps": 1,
            "stage.schedule.warmup_steps": 1,
            "callbacks.checkpoints.every_n_train_steps": 2,
            "callbacks.progress.seconds_between_lines": 600,
            **{f"model.text.{name}": value for name, value in TINY_STUDENT.items()},
        }
        given = {override.partition("=")[0] for override in more}
        return [*(f"{key}={value}" for key, value in tiny.items() if key not in given), *more]

    def first_samples(self, shard: str, samples: int) -> Path:
        """A shard with the first samples of one of the starter data."""
        source = self.starter / shard
        target = self.new_directory() / source.name
        target.parent.mkdir(parents=True)
        with tarfile.open(source) as old, tarfile.open(target, "w") as new:
            members = old.getmembers()
            keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))[:samples]
            for member in members:
                if member.name.partition(".")[0] in keys:
                    new.addfile(member, old.extractfile(member))
        return target

    def damaged_texts(self, damaged: Iterable[int], samples: int) -> Path:
        """A shard of parallel texts in which the samples of these numbers are no JSON."""
        shard = self.new_directory() / "damaged.tar"
        shard.parent.mkdir(parents=True)
        with tarfile.open(shard, "w") as tar:
            for number in range(samples):
                data = b"{" if number in damaged else json.dumps({"en": f"cat {number}", "zh": f"猫 {number}"}).encode()
                member = tarfile.TarInfo(f"{number:04d}.json")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return shard

    def new_directory(self) -> Path:
        return self.root / "runs" / str(next(self._numbers))

    def new_file(self) -> Path:
        directory = self.new_directory()
        directory.mkdir(parents=True)
        return directory / "file"

    def compose(self, *overrides: str, directory: Path) -> DictConfig:
        """What ``python train.py`` would hand to its main function, without the tiny overrides."""
        register_resolvers()
        with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
            config = compose("train", list(overrides), return_hydra_config=True)
        with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
            config.hydra.runtime.output_dir = str(directory)
        HydraConfig.instance().set_config(config)
        config = config.copy()
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config

    def train(self, *overrides: str, directory: Path | None = None) -> TrainedRun:
        """A tiny run in this process."""
        directory = directory or self.new_directory()
        trainer = train(self.compose(*self.overrides(*overrides), directory=directory), directory)
        return TrainedRun(directory, trainer)

    def stage(self, *overrides: str) -> Any:
        """The stage of a tiny run before anything is trained."""
        config = self.compose(*self.overrides(*overrides), directory=self.new_directory())
        L.seed_everything(config.seed, verbose=False)
        return instantiate(config.stage, _convert_="all")

    def data(self, *overrides: str) -> Any:
        """The data of a tiny run, set up."""
        config = self.compose(*self.overrides(*overrides), directory=self.new_directory())
        data = instantiate(config.data, _convert_="all")
        data.setup()
        return data

    def command(self, *overrides: str, directory: Path | None = None) -> list[str]:
        """The real command of a tiny run; with ``directory`` it goes there."""
        place = [] if directory is None else [f"hydra.run.dir={directory}"]
        return [sys.executable, str(REPOSITORY / "train.py"), *self.overrides(*overrides), *place]

    def run_command(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """What the real command prints and returns."""
        return run_command(self.command(*overrides))

    def run(self, *overrides: str, directory: Path | None = None) -> Run:
        """A tiny run by the real command. Its output is shown when it fails."""
        directory = directory or self.new_directory()
        done = run_command(self.command(*overrides, directory=directory))
        assert done.returncode == 0, done.stdout + done.stderr
        return Run(directory)


def run_command(command: list[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def environment() -> dict[str, str]:
    """One thread, so that sums have one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}

"""``stage.micro_batch=auto`` and ``batch_size=auto``: as many samples at a time as fit, measured before a run begins.

Both end in plain numbers in the configuration of the run, as if the command had named them: the same on every rank, and
the same when the run goes on. Measured are real steps of the stage on the longest texts that it allows.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from altclip_train.data.streaming import StreamedPairs
from altclip_train.data.training_data import TrainingData
from altclip_train.heap import keep_freed_memory
from altclip_train.optim import gradient_bytes
from altclip_train.training import runs
from altclip_train.training.facts import read_config
from altclip_train.training.launch import launched_process, lowest, own_rank
from altclip_train.training.memory import available, peak, reset_peak
from altclip_train.training.session import checked_configuration, ignore_expected_warnings, set_matmul_precision
from altclip_train.training.sharded import FullyShardedStrategy
from altclip_train.types import ImageTextBatch, TextPairBatch

AUTO = "auto"
MICRO, BATCH, GLOBAL, RATE = "stage.micro_batch", "batch_size", "data.global_batch_size", "stage.optimizer.lr"
MARGIN = 0.1  # of the memory that stays free: fragments, buffers of libraries and of other devices
STEPS = 2  # of a trial: the second has the optimizer's state beside the gradients
EPOCH_STEPS = 100  # that batch_size=auto leaves in an epoch at least
_FOUND = "ALTCLIP_SIZES"  # by this variable Lightning's processes learn what their parent has found


def settled(config: DictConfig, run: Path | None = None) -> DictConfig:
    """The configuration with numbers in place of ``auto``: those of the run that goes on in ``run``, or measured ones.

    Raises ValueError where one cannot be found.
    """
    if config.batch_size not in (None, AUTO):
        raise ValueError(f"batch_size={config.batch_size!r}: expected null or auto; {GLOBAL} takes a number")
    if isinstance(size := OmegaConf.select(config, GLOBAL), str):
        raise ValueError(f"{GLOBAL}={size!r}: expected a number; batch_size=auto finds one")
    if isinstance(size := OmegaConf.select(config, MICRO), str) and size != AUTO:
        raise ValueError(f"{MICRO}={size!r}: expected a number, auto or null")
    wanted = [key for key in (MICRO, BATCH) if OmegaConf.select(config, key) == AUTO]
    if not wanted:
        return config
    if len(wanted) > 1:
        raise ValueError(f"{MICRO}=auto fits a part of a given batch, batch_size=auto a whole batch: choose one")
    (key,) = wanted
    config = config.copy()
    OmegaConf.update(config, key, None)
    if own_rank() > 0 and launched_process() is None:
        found = json.loads(os.environ[_FOUND])
    elif run is not None and config.resume is not None and runs.newest_checkpoint(run) is not None:
        before = OmegaConf.create(read_config(run))
        found = {name: OmegaConf.select(before, name) for name in ((MICRO,) if key == MICRO else (GLOBAL, RATE))}
        _say(f"{key}=auto: {_spelled(found)}, as {run} began with")
    else:
        found = _found(config, key)
    os.environ[_FOUND] = json.dumps(found)
    for name, value in found.items():
        OmegaConf.update(config, name, value)
    return config


def largest_that_fits(peak_of: Callable[[int], float], *, budget: float, limit: int, first: int = 1) -> int:
    """The largest size up to ``limit`` whose peak stays within the budget, or at most an eighth less; 0: none.

    Sizes double until the line through the last two peaks says where the budget ends, so that nothing far beyond it is
    tried. A peak beyond all the same, or out of memory (infinite), halves the way to the last size that fitted.
    """
    fits, used, whole = 0, 0.0, limit
    size = min(first, limit)
    while size > fits + (0 if size == whole else fits // 16):
        found = peak_of(size)
        if found > budget:
            limit = size - 1
            size = (fits + limit + 1) // 2
        else:
            slope = (found - used) / (size - fits) if fits else 0.0
            fits, used = size, found
            room = int((budget - found) / slope) if slope > 0 else limit
            size = min(limit, 2 * size, size + room)
    return fits


def _found(config: DictConfig, key: str) -> dict[str, Any]:
    """Numbers by their keys. ``config`` has null in place of auto."""
    ignore_expected_warnings()
    checked_configuration(config)
    set_matmul_precision(config.float32_matmul_precision)
    trainer: L.Trainer = instantiate(config.trainer, logger=False, callbacks=[], enable_checkpointing=False)
    _check_measurable(trainer, key)
    keep_freed_memory(trainer.strategy.root_device)  # as the run does
    data: TrainingData = instantiate(config.data, _convert_="all")
    data.prepare_data()
    budget = _budget(trainer)
    trials = _Trials(config, data, trainer.strategy.root_device)
    if trainer.world_size > 1:
        dense = gradient_bytes(trials.stage)
        measured = gradient_bytes(trials.stage, by_rows=trainer.strategy.root_device.type == "cpu")
        budget -= dense + (dense - measured)  # DDP copies them to send them, and takes none by rows
    share = math.ceil(data.global_batch_size / trainer.world_size)
    if key == MICRO:
        peak_of, limit, first = partial(trials.peak_in_parts, share), share, math.ceil(share / 32)
    else:
        peak_of, limit, first = trials.peak, _longest_batch(data, trainer.world_size), 1
    size = lowest(lambda: largest_that_fits(peak_of, budget=budget, limit=limit, first=first))
    trials.end()
    if size == 0:
        raise ValueError(
            f"{key}=auto: not even one sample of {data.max_length} tokens fits into {budget / 2**20:,.0f} MiB: "
            "set stage.gradient_checkpointing=true, strategy=fsdp2, or a smaller data.max_length"
        )
    if key == MICRO:
        found = {MICRO: size if size < share else None}
        words = f"the {share:,} samples of a device " + (f"in parts of {size:,}" if size < share else "fit at once")
    else:
        found = _recipe(config, size * trainer.world_size)
        words = f"{size:,} samples on each of {trainer.world_size} device(s)"
    _say(f"{key}=auto: {words}, so {_spelled(found)}. Measured; {budget / 2**20:,.0f} MiB may be used")
    return found


class _Trials:
    """Steps of a stage that nobody keeps, and what they take."""

    def __init__(self, config: DictConfig, data: TrainingData, device: torch.device) -> None:
        self.config, self.device = config, device
        self.stage = instantiate(config.stage, _convert_="all")
        # A rate of 0: weights stay what they are, however often they are tried.
        self.stage.schedule = _standing_still
        self.data = _LongestBatches(data)

    def peak_in_parts(self, samples: int, size: int) -> float:
        """Bytes at most in use while ``samples`` train ``size`` at a time.

        Two parts are trained: of more, only the pictures take memory, which is added.
        """
        self.stage.micro_batch = size if size < samples else None
        trained = min(samples, 2 * size)
        pixels = getattr(self.data.longest_batch(1), "pixel_values", torch.empty(0))
        return self.peak(trained) + (samples - trained) * pixels.nbytes

    def peak(self, samples: int) -> float:
        """Bytes at most in use while ``samples`` train; infinite where memory ends."""
        self.data.samples = samples
        trainer: L.Trainer = instantiate(
            self.config.trainer,
            strategy=SingleDeviceStrategy(self.device),
            devices=1,
            num_nodes=1,
            max_steps=STEPS,
            max_epochs=1,
            limit_val_batches=0,
            logger=False,
            callbacks=[],
            enable_checkpointing=False,
        )
        reset_peak(self.device)
        try:
            trainer.fit(self.stage, self.data)
        except torch.OutOfMemoryError:
            return math.inf
        finally:
            self.stage.zero_grad()
            gc.collect()
        return peak(self.device)

    def end(self) -> None:
        """Give back the memory."""
        del self.stage
        gc.collect()
        reset_peak(self.device)


class _LongestBatches(L.LightningDataModule):
    """In place of a stage's data: the same tokenizers, no shards, no cache, texts as long as they may be."""

    def __init__(self, data: TrainingData) -> None:
        self.data, self.samples = data, 1
        data.load_processing()
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def cache_vectors_of(self, tower: torch.nn.Module) -> None:
        """The first epoch has none."""

    def train_dataloader(self) -> _Repeated:
        return _Repeated(self.data.longest_batch(self.samples))


class _Repeated:
    """One batch for every step of a trial. In a list Lightning would look for loaders inside of it."""

    def __init__(self, batch: TextPairBatch | ImageTextBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[TextPairBatch | ImageTextBatch]:
        return repeat(self.batch, STEPS)


def _standing_still(optimizer: Optimizer, *, total_steps: int) -> LambdaLR:  # noqa: ARG001 - as every schedule
    return LambdaLR(optimizer, lambda step: 0.0)  # noqa: ARG005


def _check_measurable(trainer: L.Trainer, key: str) -> None:
    if isinstance(trainer.strategy, FullyShardedStrategy):
        raise ValueError(f"{key}=auto measures whole weights on one device: with strategy=fsdp2 give a number")
    if trainer.num_nodes > 1 and launched_process() is None:
        raise ValueError(
            f"{key}=auto: nodes that are started one by one cannot agree on a number: use torchrun or srun"
        )


def _budget(trainer: L.Trainer) -> int:
    """Bytes that this process may use of its device; of a CPU each process has its part."""
    device = trainer.strategy.root_device
    free = available(device)
    if device.type == "cuda":
        sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
        free -= sizes[device.index] - min(sizes)  # the others may be smaller
    else:
        free //= trainer.num_devices
    return int(free * (1 - MARGIN))


def _longest_batch(data: TrainingData, devices: int) -> int:
    data.setup("fit")
    if isinstance(data.train_set, StreamedPairs):
        raise ValueError("batch_size=auto needs the length of an epoch: with data.mode=streaming give a number")
    return max(1, (data.epoch_samples or len(data.train_set)) // EPOCH_STEPS // devices)


def _recipe(config: DictConfig, size: int) -> dict[str, Any]:
    """The global batch, and the learning rate by the square root of its ratio to that of the recipe.

    Reference: arXiv:2205.10330, the square-root rule of adaptive optimizers.
    """
    rate = config.stage.optimizer.lr * math.sqrt(size / config.data.global_batch_size)
    return {GLOBAL: size, RATE: float(f"{rate:.3g}")}


def _spelled(found: dict[str, Any]) -> str:
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in found.items())


def _say(text: str) -> None:
    if own_rank() == 0:
        print(text)

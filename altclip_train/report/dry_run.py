"""``dry_run=true``: what a training would be: parts, batch, steps, memory, and the time by its first steps.

Those steps are real ones, by the same trainer on the same data and devices. No run is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer

from altclip_train.data.streaming import StreamedPairs
from altclip_train.data.training_data import FILL, READ
from altclip_train.heap import keep_freed_memory
from altclip_train.optim import gradient_bytes, parameter_groups, takes_gradients_by_rows
from altclip_train.report.record import parameter_counts
from altclip_train.stages import ContrastiveLearning, TeacherLearning
from altclip_train.training.launch import own_rank
from altclip_train.training.memory import peak, reset_peak
from altclip_train.training.session import checked_configuration, ignore_expected_warnings, set_matmul_precision
from altclip_train.training.sizes import settled
from altclip_train.types import ImageTextBatch, TextPairBatch

SAMPLES = 8  # of the batch that is looked at
STEPS, SECONDS = 3, 60.0  # that are timed: as many, or fewer where they take so long
Stage = TeacherLearning | ContrastiveLearning


def dry_run(config: DictConfig) -> None:
    """Build everything that ``config`` names, look at a small batch, train a few steps, and say what it would be."""
    ignore_expected_warnings()
    config = settled(config)
    checked_configuration(config)
    set_matmul_precision(config.float32_matmul_precision)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    first_epoch_fills = data.embeddings == FILL
    data.embeddings = READ if first_epoch_fills else data.embeddings  # nothing is written
    data.prepare_data()
    data.setup()
    stage: Stage = instantiate(config.stage, _convert_="all")
    _check_towers(stage, data)
    timer = StepTimer()
    trainer: L.Trainer = instantiate(
        config.trainer, logger=False, callbacks=[timer], enable_checkpointing=False, limit_val_batches=0
    )
    keep_freed_memory(trainer.strategy.root_device)  # as the run does
    batch = _first_batch(data)
    share = math.ceil(data.global_batch_size / trainer.world_size)
    memory = _estimated_memory(stage, batch, min(share, stage.micro_batch or share), trainer)
    steps, of_what = _steps(data, trainer)
    console = Console(quiet=own_rank() > 0)
    console.out(f"data: {' + '.join(f'{count:,}' for count in data.train_set.samples)} samples of its sources")
    console.out(f"global batch: {data.global_batch_size:,} = {share:,} on each of {trainer.world_size} device(s)")
    console.out(f"steps: {steps:,}{of_what}    precision: {trainer.precision}")
    console.print(_parts_table(stage), _batch_table(batch, data))
    trainer.fit(stage, data)
    console.print(_memory_table(memory, timer.peak, trainer.strategy.root_device))
    console.out(timer.estimate(steps))
    if first_epoch_fills:
        console.out("data.embeddings=fill: the steps after the first epoch are faster")


class StepTimer(L.Callback):
    """Stops a training after a few steps, and knows how long they took and the memory of this device."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.peak = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        reset_peak(trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        device = trainer.strategy.root_device
        self.peak = peak(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.times.append(time.perf_counter())
        enough = len(self.times) > STEPS or self.times[-1] - self.times[0] > SECONDS
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(enough, all=False)

    def estimate(self, steps: int) -> str:
        """In words. The first step is not timed: it makes the optimizer's state, and starts loader processes."""
        timed = len(self.times) - 1
        if timed < 1:
            return f"time: {steps:,} steps are too few to be timed"
        seconds = (self.times[-1] - self.times[0]) / timed
        return (
            f"time: {steps:,} steps, about {_spelled(steps * seconds)} at {seconds:.3g} s a step, measured here over "
            f"{timed} steps: loading, forward, backward, optimizer; without validation, benchmarks and checkpoints"
        )


def saved_bytes(stage: Stage, batch: TextPairBatch | ImageTextBatch) -> int:
    """Bytes that the towers keep of this batch for the backward pass, beside the parameters."""
    parameters = {one.untyped_storage().data_ptr() for one in stage.parameters()}
    with _counting(parameters) as kept:
        # Their features are held: they hold what was saved.
        features = _encode(stage, batch)
    del features
    return sum(kept.values())


def _encode(stage: Stage, batch: TextPairBatch | ImageTextBatch) -> list[Tensor]:
    if isinstance(batch, TextPairBatch):
        assert isinstance(stage, TeacherLearning)
        return [stage.student.encode_packed(batch.student)]
    assert isinstance(stage, ContrastiveLearning)
    assert batch.pixel_values is not None, "nothing is cached here"
    with torch.set_grad_enabled(not stage.image_tower_locked):
        images = stage.model.encode_image(batch.pixel_values)
    return [images, stage.model.encode_text(batch.text)]


def optimizer_bytes(stage: Stage) -> int:
    """Of the optimizer's state once it has made a step."""
    per_parameter = _states_per_parameter(stage)
    return sum(
        one.numel() * one.element_size() * per_parameter[bool(group.get("hidden"))]
        for group in parameter_groups(stage, 0.0)
        for one in group["params"]
    )


@contextmanager
def _counting(ignored: set[int]) -> Iterator[dict[int, int]]:
    """Bytes by storage, each counted once, of tensors that autograd saves."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # which keeps the storage, so that its address stays its own

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _states_per_parameter(stage: Stage) -> dict[bool, int]:
    """Numbers that the optimizer keeps for each number of a hidden matrix (True) and of any other parameter."""
    optimizer = _toy_optimizer(stage)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        parameter.ndim == 2: sum(value.numel() == parameter.numel() for value in state.values())
        for parameter, state in optimizer.state.items()
    }


def _toy_optimizer(stage: Stage) -> Optimizer:
    """The stage's, of a hidden matrix and its bias."""
    return stage.optimizer(parameter_groups(nn.Linear(3, 3), 0.0))


def _check_towers(stage: Stage, data: Any) -> None:
    """What a run finds when it begins: raises ValueError where tokenizer, lengths or pictures do not fit."""
    if isinstance(stage, TeacherLearning):
        data.check_text_towers(student=stage.student.config, teacher=stage.teacher.config)
    else:
        data.check_towers(stage.model.config)
    stage.tokenizer_guard.check(data.tokenizer)


def _first_batch(data: Any) -> TextPairBatch | ImageTextBatch:
    if isinstance(data.train_set, StreamedPairs):
        batch = next(iter(data.train_set))
    else:
        batch = data.train_set.__getitems__(list(range(min(SAMPLES, data.global_batch_size))))
    return data.on_after_batch_transfer(batch, 0)


def _spelled(seconds: float) -> str:
    """A duration in two digits or more, in the unit that one would say."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _steps(data: Any, trainer: L.Trainer) -> tuple[int, str]:
    """Of the whole training, and what that is of the data."""
    if isinstance(data.train_set, StreamedPairs):
        return trainer.max_steps, ", of a stream without epochs"
    per_epoch = (data.epoch_samples or len(data.train_set)) // data.global_batch_size
    epochs, limit = trainer.max_epochs or -1, trainer.max_steps
    total = per_epoch * epochs if epochs > 0 else limit
    total = min(total, limit) if limit > 0 else total
    return total, f", {per_epoch:,} in each epoch of the data"


def _parts_table(stage: Stage) -> Table:
    table = Table("part", "trainable", "frozen", title="parameters")
    for column in table.columns[1:]:
        column.justify = "right"
    counts = parameter_counts(stage)
    for name, part in counts.items():
        table.add_row(name, *(f"{part[kind]:,}" if part[kind] else "" for kind in ("trainable", "frozen")))
    table.add_row("together", *(f"{sum(p[kind] for p in counts.values()):,}" for kind in ("trainable", "frozen")))
    return table


def _estimated_memory(
    stage: Stage, batch: TextPairBatch | ImageTextBatch, samples: int, trainer: L.Trainer
) -> dict[str, int]:
    """Bytes by what they are for, when so many samples have a graph at a time."""
    weights = sum(one.numel() * one.element_size() for one in stage.parameters())
    alone_on_cpu = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
    by_rows = alone_on_cpu and takes_gradients_by_rows(_toy_optimizer(stage))
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in str(trainer.precision)):
        activations = saved_bytes(stage, batch) * samples // len(batch.keys)
    return {
        "weights": weights,
        "gradients" + (" but for those of word vectors" if by_rows else ""): gradient_bytes(stage, by_rows=by_rows),
        "optimizer": optimizer_bytes(stage),
        f"activations of {samples:,} samples": activations,
    }


def _memory_table(estimated: dict[str, int], measured: int, device: torch.device) -> Table:
    table = Table("", "MiB", title="memory of one device")
    table.columns[1].justify = "right"
    for name, count in {**estimated, "together, estimated": sum(estimated.values())}.items():
        table.add_row(name, f"{count / 2**20:,.0f}")
    table.add_section()
    whole = "reserved on the GPU" if device.type == "cuda" else "the process with its libraries"
    table.add_row(f"peak of the first steps, {whole}", f"{measured / 2**20:,.0f}")
    table.caption = f"activations: those of {SAMPLES} samples, scaled; without the loss"
    return table


def _batch_table(batch: TextPairBatch | ImageTextBatch, data: Any) -> Table:
    tokens = batch.student if isinstance(batch, TextPairBatch) else batch.text
    shapes = [f"text ids {tuple(tokens.input_ids.shape)} of {len(tokens.lengths)} texts"]
    if isinstance(batch, ImageTextBatch) and batch.pixel_values is not None:
        shapes.append(f"pictures {tuple(batch.pixel_values.shape)}")
    table = Table("sample", "language", "tokens", "text", title=f"first {len(batch.keys)} samples: {', '.join(shapes)}")
    texts = tokens.input_ids.split(tokens.lengths.tolist())
    for key, language, ids in zip(batch.keys, batch.languages, texts, strict=False):
        table.add_row(key, language, str(len(ids)), data.tokenizer.decode(ids, skip_special_tokens=True))
    return table

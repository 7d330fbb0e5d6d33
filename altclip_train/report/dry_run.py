"""``dry_run=true``: what a training would be, without training: parts, batch, steps, memory. No run is written."""

from __future__ import annotations

import math
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

from altclip_train.data.streaming import StreamedPairs
from altclip_train.optim import parameter_groups
from altclip_train.report.record import parameter_counts
from altclip_train.stages import ContrastiveLearning, TeacherLearning
from altclip_train.training.session import checked_configuration, ignore_expected_warnings
from altclip_train.types import ImageTextBatch, TextPairBatch

SAMPLES = 8  # of the batch that is looked at
Stage = TeacherLearning | ContrastiveLearning


def dry_run(config: DictConfig) -> None:
    """Build everything that ``config`` names, look at one small batch, and print what training would be."""
    ignore_expected_warnings()
    checked_configuration(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup()
    stage: Stage = instantiate(config.stage, _convert_="all")
    _check_towers(stage, data)
    # For its devices and precision alone. It takes no step.
    trainer: L.Trainer = instantiate(config.trainer, logger=False, callbacks=[], enable_checkpointing=False)
    batch = _first_batch(data)
    share = math.ceil(data.global_batch_size / trainer.world_size)
    console = Console()
    print(f"data: {' + '.join(f'{count:,}' for count in data.train_set.samples)} samples of its sources")
    print(f"global batch: {data.global_batch_size:,} = {share:,} on each of {trainer.world_size} device(s)")
    print(f"steps: {_steps(data, trainer)}    precision: {trainer.precision}")
    console.print(_parts_table(stage))
    console.print(_memory_table(stage, batch, min(share, stage.micro_batch or share), trainer))
    console.print(_batch_table(batch, data))


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
    toy = nn.Linear(3, 3)
    optimizer = stage.optimizer(parameter_groups(toy, 0.0))
    toy(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        parameter is toy.weight: sum(value.numel() == parameter.numel() for value in state.values())
        for parameter, state in optimizer.state.items()
    }


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


def _steps(data: Any, trainer: L.Trainer) -> str:
    if isinstance(data.train_set, StreamedPairs):
        return f"{trainer.max_steps:,}, of a stream without epochs"
    per_epoch = (data.epoch_samples or len(data.train_set)) // data.global_batch_size
    epochs, limit = trainer.max_epochs or -1, trainer.max_steps
    total = per_epoch * epochs if epochs > 0 else limit
    total = min(total, limit) if limit > 0 else total
    return f"{total:,}, {per_epoch:,} in each epoch of the data"


def _parts_table(stage: Stage) -> Table:
    table = Table("part", "trainable", "frozen", title="parameters")
    for column in table.columns[1:]:
        column.justify = "right"
    counts = parameter_counts(stage)
    for name, part in counts.items():
        table.add_row(name, *(f"{part[kind]:,}" if part[kind] else "" for kind in ("trainable", "frozen")))
    table.add_row("together", *(f"{sum(p[kind] for p in counts.values()):,}" for kind in ("trainable", "frozen")))
    return table


def _memory_table(stage: Stage, batch: TextPairBatch | ImageTextBatch, texts: int, trainer: L.Trainer) -> Table:
    weights = sum(one.numel() * one.element_size() for one in stage.parameters())
    gradients = sum(one.numel() * one.element_size() for one in stage.parameters() if one.requires_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in str(trainer.precision)):
        activations = saved_bytes(stage, batch) * texts // len(batch.keys)
    rows = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer_bytes(stage),
        f"activations of {texts:,} samples": activations,
    }
    table = Table("", "MiB", title="memory of one device, estimated")
    table.columns[1].justify = "right"
    for name, count in {**rows, "together": sum(rows.values())}.items():
        table.add_row(name, f"{count / 2**20:,.0f}")
    table.caption = f"activations: those of {len(batch.keys)} samples, scaled; without the loss and what libraries take"
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

"""Samples that could not be used: counted over all ranks, listed in bad_samples.jsonl, and limited."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from altclip_train import distributed
from altclip_train.types import ImageTextBatch, SkippedSample, TextPairBatch

logger = logging.getLogger(__name__)

FILE = "bad_samples.jsonl"


class SkipCounter:
    """Samples drawn and skipped by all ranks, and whether that is more than ``max_fraction`` of them.

    Below 20 samples, and within three standard deviations above the limit, chance is given the benefit.
    """

    def __init__(self, max_fraction: float) -> None:
        self.max_fraction = max_fraction
        self.drawn = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}  # by reason

    @property
    def skipped(self) -> int:
        return self.reasons.total()

    def add(self, drawn: int, skipped: Iterable[SkippedSample]) -> None:
        self.drawn += drawn
        for reason, shard, key, detail in skipped:
            self.reasons[reason] += 1
            self.examples.setdefault(reason, f"{key!r} in {shard}{detail and f': {detail}'}")

    def check(self) -> None:
        """Raise ValueError with all reasons when too many are skipped."""
        # What a stream leaves out it does not replace, so that it may be more than was drawn.
        expected = self.max_fraction * max(self.drawn, self.skipped)
        if self.drawn >= 20 and self.skipped > expected + 3 * math.sqrt(expected * (1 - self.max_fraction)):
            lines = [f"  {reason}: {count}, such as {self.examples[reason]}" for reason, count in self.counts()]
            head = (
                f"{self.skipped} of {self.drawn} samples cannot be used, more than "
                f"data.max_bad_fraction={self.max_fraction} allows; mend the data or raise it:"
            )
            raise ValueError("\n".join([head, *lines]))

    def counts(self) -> list[tuple[str, int]]:
        return self.reasons.most_common()

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "reasons": dict(self.reasons), "examples": dict(self.examples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn, self.reasons = state["drawn"], Counter(state["reasons"])
        self.examples = dict(state["examples"])


class _OwnPart:
    """What this rank met since the ranks last exchanged it."""

    def __init__(self) -> None:
        self.drawn = 0
        self.skipped: list[SkippedSample] = []

    def add(self, batch: TextPairBatch | ImageTextBatch) -> None:
        self.drawn += len(batch.keys)
        self.skipped += batch.skipped

    def exchange(self, device: torch.device) -> tuple[int, list[SkippedSample]]:
        """What all ranks met, the same on each of them, and begin anew."""
        own = torch.tensor([self.drawn, len(self.skipped)], device=device)
        drawn, skipped = distributed.all_reduce_sum(own).tolist()
        parts = distributed.all_gather_objects(self.skipped) if skipped else []
        self.drawn, self.skipped = 0, []
        return drawn, [sample for part in parts for sample in part]


class BadSamples(L.Callback):
    """Lists every skipped sample once in ``directory/bad_samples.jsonl`` and stops a run that skips too many.

    The ranks add up their parts every ``every_n_steps`` steps, at the end of an epoch and for each checkpoint, so
    that all of them know the same counts and stop in the same step. Counts go on exactly when a run is resumed.
    Samples of validation data are counted in each validation alone.
    """

    def __init__(self, *, directory: str, every_n_steps: int) -> None:
        self.path = Path(directory) / FILE
        self.every_n_steps = every_n_steps
        self._own, self._own_of_validation = _OwnPart(), _OwnPart()
        self._listed: set[tuple[str, str]] = set()  # shard and key; on rank 0

    def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.max_bad_fraction: float = trainer.datamodule.max_bad_fraction  # type: ignore[attr-defined]
        self.counter = SkipCounter(self.max_bad_fraction)
        if trainer.is_global_zero:
            self._listed = _read_whole_lines(self.path)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        *_: Any,
    ) -> None:
        self._own.add(batch)
        if trainer.global_step % self.every_n_steps == 0:
            self._exchange(pl_module)
            pl_module.log_dict(self._metrics())
            self.counter.check()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if self._exchange(pl_module):
            pl_module.log_dict(self._metrics())
        self.counter.check()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        *_: Any,
    ) -> None:
        self._own_of_validation.add(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        drawn, skipped = self._own_of_validation.exchange(pl_module.device)
        counter = SkipCounter(self.max_bad_fraction)
        counter.add(drawn, skipped)
        pl_module.log("val/skipped", float(counter.skipped))
        self._list(skipped)
        counter.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        # Every rank comes here, as saving is a collective call: the counts are those of the checkpoint's step.
        self._exchange(pl_module)
        checkpoint["bad_samples"] = self.counter.state_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        if "bad_samples" in checkpoint:
            self.counter.load_state_dict(checkpoint["bad_samples"])

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero and self.counter.skipped:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.counter.counts())
            print(f"skipped {self.counter.skipped} of {self.counter.drawn} samples ({reasons}), listed in {self.path}")

    def _exchange(self, pl_module: L.LightningModule) -> bool:
        """Add what all ranks met since the last time; whether anything was skipped."""
        drawn, skipped = self._own.exchange(pl_module.device)
        known = set(self.counter.reasons)
        self.counter.add(drawn, skipped)
        for reason in self.counter.reasons.keys() - known if distributed.rank() == 0 else ():
            logger.warning("skipped samples (%s), such as %s", reason, self.counter.examples[reason])
        self._list(skipped)
        return bool(skipped)

    def _metrics(self) -> dict[str, float]:
        by_reason = {f"data/skipped/{reason}": float(count) for reason, count in self.counter.counts()}
        return {"data/skipped": float(self.counter.skipped), **by_reason}

    def _list(self, skipped: Iterable[SkippedSample]) -> None:
        """Append what is new; only what was skipped again after a resume is there already."""
        if distributed.rank() != 0:
            return
        lines = []
        for sample in skipped:
            if (place := (sample.shard, sample.key)) not in self._listed:
                self._listed.add(place)
                lines.append(json.dumps(sample._asdict(), ensure_ascii=False) + "\n")
        if lines:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(lines))


def _read_whole_lines(path: Path) -> set[tuple[str, str]]:
    """Shard and key of each line; a last line that a kill cut short is removed from the file."""
    if not path.is_file():
        return set()
    with path.open("r+b") as file:
        whole = file.read().rpartition(b"\n")[0]
        file.truncate(len(whole) + 1 if whole else 0)
    entries = map(json.loads, whole.split(b"\n") if whole else ())
    return {(entry["shard"], entry["key"]) for entry in entries}

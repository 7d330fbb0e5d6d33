"""The report of a run while it trains: a reload in the browser shows where it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig

from altclip_train.data.dataset import PairDataset
from altclip_train.evaluation.callback import BenchmarkCallback
from altclip_train.evaluation.report import write_page
from altclip_train.report.page import write_report
from altclip_train.report.record import command, environment, parameter_counts, write_samples
from altclip_train.report.sheets import log_found_pictures, log_training_samples
from altclip_train.training import runs

logger = logging.getLogger(__name__)

SHARE = 0.01  # of the time that writing may take


class RunReport(L.Callback):
    """Writes ``directory/report.html``: at the start, about every ``every_n_seconds``, and at the end.

    On rank 0, in a thread, and never for more than a hundredth of the time. What goes wrong is a warning: no run fails
    for its report. Stands after the benchmarks, whose results the last report has. ``samples`` are shown. Loggers get
    the same pictures as sheets: those of the samples at the first step, of what benchmarks find at the end.
    """

    def __init__(self, *, directory: str, every_n_seconds: float, samples: int) -> None:
        self.directory = Path(directory)
        self.every_n_seconds, self.samples = every_n_seconds, samples
        self._pool: ThreadPoolExecutor | None = None
        self._due = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="report")
        data = trainer.datamodule.train_set  # type: ignore[attr-defined]
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        runs.record(
            self.directory,
            command=command(list(overrides)),
            environment=environment(trainer),
            parameters=parameter_counts(pl_module),
            data_fingerprint=data.fingerprint,
        )
        if isinstance(data, PairDataset):  # a stream cannot be asked for a sample
            _warned(lambda: write_samples(self.directory, data, self.samples))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # By now a resumed run is at its step: its loggers have the sheet from the beginning.
        if self._pool is not None and trainer.global_step == 0:
            _warned(lambda: log_training_samples(self.directory, trainer))

    def on_train_batch_end(self, *_: object) -> None:
        if self._pool is not None and time.monotonic() >= self._due:
            self._due = float("inf")  # until it is written
            self._pool.submit(_warned, self._write)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if self._pool is not None:
            for one in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(one, BenchmarkCallback) and one.results:
                    _warned(lambda one=one: self._write_results(trainer, one))
            self._finish(trainer)
            print(f"report: {self.directory / 'report.html'}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        if self._pool is not None:
            self._finish(trainer)

    def _finish(self, trainer: L.Trainer) -> None:
        assert self._pool is not None
        self._pool.shutdown()
        self._pool = None
        for one in trainer.loggers:
            one.save()
        _warned(lambda: write_report(self.directory))

    def _write(self) -> None:
        began = time.monotonic()
        try:
            write_report(self.directory, plots=False)
        finally:
            ended = time.monotonic()
            self._due = ended + max(self.every_n_seconds, (ended - began) / SHARE)

    def _write_results(self, trainer: L.Trainer, benchmarks: BenchmarkCallback) -> None:
        model = str(self.directory / runs.MODEL)
        by_name = {one.name: one for one in benchmarks.benchmarks}
        write_page(self.directory / "results.html", {"A": model}, {"A": benchmarks.results}, by_name)
        for one in benchmarks.benchmarks:
            log_found_pictures(self.directory, trainer, one, benchmarks.results)


def _warned(action: Callable[[], object]) -> None:
    """Do it, and go on without it where it fails."""
    try:
        action()
    except Exception as error:
        logger.warning("the report was not written: %s: %s", type(error).__name__, error)

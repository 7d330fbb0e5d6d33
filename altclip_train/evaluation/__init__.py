"""Benchmarks and their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from altclip_train.evaluation.benchmarks import RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.comparison import compare
from altclip_train.evaluation.encoder import Encoder
from altclip_train.evaluation.results import BenchmarkResult, read_results, result_tables, write_results
from altclip_train.evaluation.retrieval import retrieval_chance, retrieval_metrics
from altclip_train.evaluation.zero_shot import build_classifier, zero_shot_chance, zero_shot_metrics

if TYPE_CHECKING:
    from altclip_train.evaluation.callback import BenchmarkCallback

__all__ = [
    "BenchmarkCallback",
    "BenchmarkResult",
    "Encoder",
    "RetrievalBenchmark",
    "ZeroShotBenchmark",
    "build_classifier",
    "compare",
    "read_results",
    "result_tables",
    "retrieval_chance",
    "retrieval_metrics",
    "write_results",
    "zero_shot_chance",
    "zero_shot_metrics",
]


def __getattr__(name: str) -> Any:
    # Evaluating a model needs no Lightning; only the callback does.
    if name == "BenchmarkCallback":
        from altclip_train.evaluation.callback import BenchmarkCallback

        return BenchmarkCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Benchmarks and their metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from altclip_train.evaluation.comparison import compare
from altclip_train.evaluation.encoder import Encoder, FeatureEncoder
from altclip_train.evaluation.results import BenchmarkResult, read_results, result_tables, write_results
from altclip_train.evaluation.retrieval import retrieval_chance, retrieval_metrics
from altclip_train.evaluation.retrieval_benchmark import RetrievalBenchmark
from altclip_train.evaluation.zero_shot import build_classifier, zero_shot_chance, zero_shot_metrics
from altclip_train.evaluation.zero_shot_benchmark import ZeroShotBenchmark

if TYPE_CHECKING:
    from altclip_train.evaluation.callback import BenchmarkCallback, StopEarly

__all__ = [
    "BenchmarkCallback",
    "BenchmarkResult",
    "Encoder",
    "FeatureEncoder",
    "RetrievalBenchmark",
    "StopEarly",
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
    # Evaluating a model needs no Lightning; only the callbacks do.
    if name in ("BenchmarkCallback", "StopEarly"):
        from altclip_train.evaluation import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

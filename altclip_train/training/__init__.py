"""What surrounds the stages while they train: runs, checkpoints, metrics, progress."""

from altclip_train.training.bad_samples import BadSamples
from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.metrics_csv import MetricsCSV
from altclip_train.training.progress import Throughput, TrainingProgress
from altclip_train.training.session import TrainingRun, register_resolvers
from altclip_train.training.sharded import FullyShardedStrategy

__all__ = [
    "AtomicCheckpointIO",
    "BadSamples",
    "FullyShardedStrategy",
    "MetricsCSV",
    "Throughput",
    "TrainingProgress",
    "TrainingRun",
    "register_resolvers",
]

"""Files that users have to shards in our format: ``altclip data import``."""

from altclip_train.data.importers.filters import Filters
from altclip_train.data.importers.job import KINDS, ImportJob
from altclip_train.data.importers.run import run_import

__all__ = ["KINDS", "Filters", "ImportJob", "run_import"]

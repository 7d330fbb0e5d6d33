"""Shards in, batches out: tar access, the order of samples, decoding, datasets."""

from altclip_train.data.dataset import (
    ImageTextDataset,
    PairDataset,
    TextPairDataset,
)
from altclip_train.data.plan import Plan, SampleRef
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.data.samples import BadSample, decode_captions, decode_image
from altclip_train.data.shards import ShardIndex, ShardReader, expand_urls
from altclip_train.data.sources import Source

__all__ = [
    "BadSample",
    "ImageTextDataset",
    "PairDataset",
    "Plan",
    "PlannedBatchSampler",
    "SampleRef",
    "ShardIndex",
    "ShardReader",
    "Source",
    "TextPairDataset",
    "decode_captions",
    "decode_image",
    "expand_urls",
]

"""Shards in, batches out: tar access, the order of samples, decoding, datasets."""

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder, TextPairDecoder
from altclip_train.data.index import ShardIndex
from altclip_train.data.plan import Plan, SampleRef
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.data.samples import BadSample, decode_captions, decode_image
from altclip_train.data.shards import ShardReader
from altclip_train.data.sources import Source
from altclip_train.data.streaming import StreamedPairs
from altclip_train.data.urls import expand_urls

__all__ = [
    "BadSample",
    "ImageTextDecoder",
    "PairDataset",
    "Plan",
    "PlannedBatchSampler",
    "SampleRef",
    "ShardIndex",
    "ShardReader",
    "Source",
    "StreamedPairs",
    "TextPairDecoder",
    "decode_captions",
    "decode_image",
    "expand_urls",
]

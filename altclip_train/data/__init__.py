"""Shards in, batches out: tar access, the order of samples, decoding, datasets."""

"""What is frozen is computed once: embeddings of many shards, in sidecars beside them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altclip_train.data.samples import BadSample, decode_captions, narrow
from altclip_train.data.shards import ShardReader
from altclip_train.data.sidecars import Sidecar
from altclip_train.data.urls import RemoteUrl, Shard
from altclip_train.types import SkippedSample

IMAGE = "image"  # name of the sidecars of pictures
SUFFIX = ".safetensors"


def teacher_name(language: str) -> str:
    """Name of the sidecars with the teacher's vectors of the texts in a language."""
    return f"teacher.{language}"


class EmbeddingStore:
    """The sidecars of many shards, opened when they are first needed; safe to fork and to pickle.

    Sidecars that are not there count as nothing cached; given ``entries``, which tells how many rows each sample
    of a shard has, they are made, and can be written. One that does not fit raises ValueError. ``digests`` are
    those of the shards' indexes. With a ``directory`` they lie there, else beside their shards.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        digests: Sequence[str],
        *,
        name: str,
        fingerprint: Mapping[str, str],
        width: int,
        directory: str | Path | None = None,
        entries: Callable[[int], Sequence[int]] | None = None,
        max_open: int = 64,
    ) -> None:
        self.paths = [sidecar_path(shard, name, directory) for shard in shards]
        self.digests = list(digests)
        self.fingerprint = dict(fingerprint)
        self.width = width
        self.entries = entries
        self.max_open = max_open
        self._open: OrderedDict[int, Sidecar | None] = OrderedDict()

    def sidecar(self, shard: int) -> Sidecar | None:
        """The sidecar of a shard; None when there is none to read. Raises what `Sidecar.open` and `create` raise."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        self._open[shard] = opened = self._opened(shard)
        while len(self._open) > self.max_open:
            self._open.popitem(last=False)  # views of it keep it mapped
        return opened

    def _opened(self, shard: int) -> Sidecar | None:
        path, made = self.paths[shard], {"fingerprint": self.fingerprint, "shard_digest": self.digests[shard]}
        try:
            if self.entries is None or path.exists():
                return Sidecar.open(path, **made, writable=self.entries is not None)
            return Sidecar.create(path, np.cumsum([0, *self.entries(shard)]), width=self.width, **made)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; give another directory for embeddings") from error

    def row(self, shard: int, sample: int, entry: int = 0) -> np.ndarray | None:
        """(D,), a view of the file; None where nothing is cached."""
        sidecar = self.sidecar(shard)
        return None if sidecar is None else sidecar.row(sample, entry)

    def row_number(self, shard: int, sample: int, entry: int = 0) -> int | None:
        """What `write` calls an entry of a sample; None when it has no row."""
        sidecar = self.sidecar(shard)
        return None if sidecar is None else sidecar.row_number(sample, entry)

    def write(self, shard: int, rows: Sequence[int] | np.ndarray, vectors: np.ndarray, *, sync: bool = False) -> None:
        """`Sidecar.write`."""
        sidecar = self.sidecar(shard)
        assert sidecar is not None, "a store without entries is only read"
        sidecar.write(rows, vectors, sync=sync)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def sidecar_path(shard: Shard, name: str, directory: str | Path | None = None) -> Path:
    """Where the sidecar of a shard lies. Raises ValueError for a remote shard without a directory."""
    if directory is not None:
        place = shard.url if isinstance(shard, RemoteUrl) else str(shard.absolute())
        digest = hashlib.sha256(place.encode()).hexdigest()
        return Path(directory) / f"{digest[:16]}-{shard.name}.{name}{SUFFIX}"
    if isinstance(shard, RemoteUrl):
        raise ValueError(f"{shard} is remote, and embeddings are mapped local files: give a directory for them")
    return shard.with_name(f"{shard.name}.{name}{SUFFIX}")


def captions_of(
    reader: ShardReader, shard: int, *, language: str, normalize_full_width: bool
) -> tuple[list[list[str]], list[SkippedSample]]:
    """The texts of each sample in a language, and the samples that have none: what the rows of a text field are of."""
    texts: list[list[str]] = []
    skipped: list[SkippedSample] = []
    for sample in range(reader.counts[shard]):
        try:
            captions = decode_captions(reader.read(shard, sample), default_language=None)
            if language not in captions:
                raise BadSample("language_missing", f"languages: {', '.join(captions)}")
            texts.append([narrow(text) for text in captions[language]] if normalize_full_width else captions[language])
        except (BadSample, OSError) as error:
            bad = error if isinstance(error, BadSample) else BadSample("unreadable", str(error))
            skipped.append(SkippedSample(bad.reason, str(reader.shards[shard]), reader.key(shard, sample), bad.detail))
            texts.append([])
    return texts, skipped


def caption_entries(reader: ShardReader, shard: int, *, language: str, normalize_full_width: bool) -> list[int]:
    """How many texts each sample has: the ``entries`` of a text field."""
    texts, _ = captions_of(reader, shard, language=language, normalize_full_width=normalize_full_width)
    return [len(texts_of_sample) for texts_of_sample in texts]


def picture_entries(reader: ShardReader, shard: int) -> list[int]:
    """One row for each sample: the ``entries`` of pictures."""
    return [1] * reader.counts[shard]

"""Random access to the samples of many WebDataset shards, near and far."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altclip_train.data.cache import ShardCache
from altclip_train.data.index import ShardIndex, ShardState, index_path, saved_header
from altclip_train.data.prefetch import Prefetcher
from altclip_train.data.remote_index import remote_headers
from altclip_train.data.urls import RemoteUrl, Shard
from altclip_train.errors import Unreachable

logger = logging.getLogger(__name__)

MAX_MEMBER_BYTES = 64 << 20


class MemberTooLarge(OSError):  # noqa: N818 the fault is the data's
    """A member has more bytes than are ever read at once."""


@dataclass(frozen=True, slots=True)
class _OpenShard:
    descriptor: int
    index: ShardIndex


class ShardReader:
    """Random access to the samples of many shards; safe to fork and to pickle.

    ``counts`` are the samples per shard, ``problems`` the damage that indexing met (also logged), and
    ``fingerprint`` stands for all keys, offsets and sizes. With ``wanted`` only fields it accepts are read.
    Remote shards are read from whole copies in ``cache``; the state and header of those in ``known`` are not asked for.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        wanted: Callable[[str], bool] | None = None,
        cache: ShardCache | None = None,
        known: Mapping[Shard, tuple[ShardState, dict[str, Any]]] | None = None,
        max_open: int = 64,
    ) -> None:
        self.shards = list(shards)
        self.wanted = wanted
        self.max_open = max_open
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._unsaved: dict[int, ShardIndex] = {}
        self._cache = cache or ShardCache()
        self._states: dict[int, ShardState] = {}  # of remote shards, as this run found them
        headers = self._headers(known or {})
        self._prefetcher = Prefetcher(self._cache)
        self.counts: list[int] = [header["samples"] for header in headers]
        self.digests: list[str] = [header["sha256"] for header in headers]
        self.problems: list[str] = [
            f"{path}: {problem}"
            for path, header in zip(self.shards, headers, strict=True)
            for problem in header["problems"]
        ]
        for problem in self.problems:
            logger.warning("%s", problem)
        self.fingerprint = hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def _headers(self, known: Mapping[Shard, tuple[ShardState, dict[str, Any]]]) -> list[dict[str, Any]]:
        remote = {number: shard for number, shard in enumerate(self.shards) if isinstance(shard, RemoteUrl)}
        found = {number: known[shard] for number, shard in remote.items() if shard in known}
        unknown = {number: shard for number, shard in remote.items() if number not in found}
        found |= zip(unknown, remote_headers(list(unknown.values()), self._cache), strict=True)
        self._states = {number: state for number, (state, _) in found.items()}
        return [found[i][1] if i in found else self._local_header(i) for i in range(len(self.shards))]

    def _local_header(self, shard: int) -> dict[str, Any]:
        path = self.shards[shard]
        assert not isinstance(path, RemoteUrl)
        header = saved_header(index_path(path), ShardState.of(path))
        if header is None:
            index = ShardIndex.open(path)
            header = index.header()
            if not index.saved:
                self._unsaved[shard] = index
        return header

    @property
    def remote(self) -> bool:
        """Whether any shard is remote."""
        return bool(self._states)

    def will_need(self, shards: Sequence[int]) -> None:
        """Fetch those of ``shards`` that are remote while others are being read, in this order."""
        wanted = {n: (self.shards[n], self._states[n]) for n in shards if n in self._states and n not in self._open}
        self._prefetcher.want(wanted)

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """The bytes of each wanted field of a sample.

        Raises MemberTooLarge before anything is read, OSError when the shard has become shorter, ValueError when
        it has changed, Unreachable.
        """
        opened = self._opened(shard)
        fields = {}
        for name, offset, size in opened.index.members(sample):
            if self.wanted is None or self.wanted(name):
                if size > MAX_MEMBER_BYTES:
                    raise MemberTooLarge(f"{name} has {size} bytes, limit {MAX_MEMBER_BYTES}")
                fields[name] = data = os.pread(opened.descriptor, size, offset)
                if len(data) != size:
                    path, key = self.shards[shard], opened.index.key(sample)
                    raise OSError(f"{path}: only {len(data)} of {size} bytes of {key}.{name} are there")
        return fields

    def key(self, shard: int, sample: int) -> str:
        return self._opened(shard).index.key(sample)

    def _opened(self, shard: int) -> _OpenShard:
        opened = self._open.get(shard)
        if opened is not None:
            self._open.move_to_end(shard)
            return opened
        path = self.shards[shard]
        opened = self._open_remote(shard, path) if isinstance(path, RemoteUrl) else self._open_local(shard)
        if opened.index.sha256 != self.digests[shard]:
            os.close(opened.descriptor)
            raise ValueError(f"{path} has changed since this run began: resume the run or start it anew")
        self._open[shard] = opened
        while len(self._open) > self.max_open:
            self._close_oldest()
        return opened

    def _open_local(self, shard: int) -> _OpenShard:
        path = self.shards[shard]
        assert not isinstance(path, RemoteUrl)
        index = self._unsaved[shard] if shard in self._unsaved else ShardIndex.open(path)
        return _OpenShard(os.open(path, os.O_RDONLY), index)

    def _open_remote(self, shard: int, url: RemoteUrl) -> _OpenShard:
        state = self._states[shard]
        try:
            descriptor = self._prefetcher.take(shard)
            if descriptor is None:
                descriptor = self._cache.open(url, state, give_way=self._close_oldest_remote)
            assert descriptor is not None
            return _OpenShard(descriptor, self._cache.index(url, state))
        except OSError as error:  # as an OSError it would count as one bad sample after another
            raise Unreachable(str(error)) from None

    def _close_oldest(self) -> None:
        os.close(self._open.popitem(last=False)[1].descriptor)

    def _close_oldest_remote(self) -> bool:
        for shard in self._open:
            if shard in self._states:
                os.close(self._open.pop(shard).descriptor)
                return True
        return False

    def close(self) -> None:
        self._prefetcher.close()
        while self._open:
            self._close_oldest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_prefetcher"):
            self.close()

"""Fetches the shards that come next while the present ones are being read."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from altclip_train.data.cache import ShardCache
from altclip_train.data.index import ShardState

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0  # before asking again for what another process fetches, or what had no room


class Prefetcher:
    """One thread, started with the first remote shard that is wanted; what it fetched stays open until taken.

    Pickled, or in a forked process, it begins anew.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._wanted: dict[int, tuple[Any, ShardState]] = {}
        self._ready: dict[int, int] = {}  # descriptors
        self._thread: threading.Thread | None = None
        self._closed = False

    def want(self, shards: Mapping[int, tuple[Any, ShardState]]) -> None:
        """Fetch these shards, ``number: (url, state)``, in this order, and no others from now on."""
        self._begin_anew_after_fork()
        if not shards and self._thread is None:
            return
        with self._changed:
            for number in self._ready.keys() - shards.keys():
                os.close(self._ready.pop(number))
            self._wanted = {number: shard for number, shard in shards.items() if number not in self._ready}
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
            self._thread.start()

    def take(self, number: int) -> int | None:
        """The open descriptor of a shard, if it is there; the caller closes it."""
        self._begin_anew_after_fork()
        with self._changed:
            self._wanted.pop(number, None)
            return self._ready.pop(number, None)

    def close(self) -> None:
        self._begin_anew_after_fork()
        with self._changed:
            self._closed = True
            self._wanted = {}
            while self._ready:
                os.close(self._ready.popitem()[1])
            self._changed.notify()

    def __reduce__(self) -> tuple[Any, ...]:
        return Prefetcher, (self.cache,)

    def _begin_anew_after_fork(self) -> None:
        if self._process != os.getpid():
            for descriptor in self._ready.values():
                os.close(descriptor)  # the parent's stay open
            self.__init__(self.cache)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                shards = list(self._wanted.items())
            if not any([self._fetch(number, *shard) for number, shard in shards]):
                with self._changed:
                    self._changed.wait(PAUSE_SECONDS)

    def _fetch(self, number: int, url: Any, state: ShardState) -> bool:
        """Whether the shard needs no more of this thread."""
        if number not in self._wanted:
            return True
        try:
            descriptor = self.cache.open(url, state, ahead=True)
        except Exception as error:  # whoever reads the shard will meet it too, and raise it
            logger.info("could not fetch ahead: %s", error)
            descriptor = None
        if descriptor is None:
            return False
        with self._changed:
            if self._closed or self._wanted.pop(number, None) is None:
                os.close(descriptor)
            else:
                self._ready[number] = descriptor
        return True

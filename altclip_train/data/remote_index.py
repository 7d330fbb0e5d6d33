"""What remote shards hold, known before any of them is read: from the indexes beside them, or by fetching all."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from altclip_train.data.cache import ShardCache
from altclip_train.data.index import ShardIndex, ShardState, parse_header, saved_header
from altclip_train.data.remote import READ_ONLY, listed_states, read_file, read_first_line, state_of
from altclip_train.data.urls import INDEX_SUFFIX, RemoteUrl, Shard

logger = logging.getLogger(__name__)

THREADS = 16
MANIFEST_FORMAT = 2
LISTED_FROM = 16  # shards in one directory from which on a listing is less than a call for each
_one_at_a_time = threading.Lock()


def manifest_headers(
    manifests: Sequence[Shard], shards: Sequence[Shard], cache: ShardCache
) -> dict[Shard, tuple[ShardState, dict[str, Any]]]:
    """State and header of those remote ``shards`` that a manifest lists, without asking for any of them.

    Whether they are still in that state is seen when they are fetched. Raises ValueError for a file that is no
    manifest of `altclip data index`, and what reading it raises.
    """
    listed: dict[str, dict[str, Any]] = {}
    for place in manifests:
        data = read_file(place, cache.patience) if isinstance(place, RemoteUrl) else place.read_bytes()
        try:
            content = json.loads(data)
            if content["format"] != MANIFEST_FORMAT:
                raise ValueError(f"format {content['format']}, expected {MANIFEST_FORMAT}")
            listed |= {entry["shard"]: _checked_entry(entry) for entry in content["shards"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{place} is no manifest that can be used ({type(error).__name__}: {error}): "
                "write it by `altclip data index URLS --manifest FILE`"
            ) from None
    named = {shard: str(shard) for shard in shards if isinstance(shard, RemoteUrl)}
    found = {shard: listed[name] for shard, name in named.items() if name in listed}
    if missing := [name for name in named.values() if name not in listed]:
        logger.warning("the manifest lists %d of %d shards, and not %s", len(found), len(named), missing[0])
    return {
        shard: (ShardState(e["bytes"], etag=e["etag"]), {**e, "sha256": e["index_sha256"]})
        for shard, e in found.items()
    }


def _checked_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a shard that could not be indexed, KeyError."""
    if entry["error"] is not None:
        raise ValueError(f"{entry['shard']} could not be indexed: {entry['error']}")
    return {key: entry[key] for key in ("samples", "bytes", "etag", "index_sha256", "problems")}


def remote_headers(urls: Sequence[RemoteUrl], cache: ShardCache) -> list[tuple[ShardState, dict[str, Any]]]:
    """State and index header of each remote shard. Raises ValueError for a stale index, and Unreachable."""
    if not urls:
        return []
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            states = _states(urls, cache, pool)
            known = list(pool.map(lambda url: known_header(url, cache, states.get(url)), urls))
            missing = [(number, urls[number]) for number, (_, header) in enumerate(known) if header is None]
            if missing:
                logger.warning(
                    "%d of %d remote shards have no index beside them, such as %s: fetching them whole to count their "
                    "samples. `altclip data index URLS`, once, saves that",
                    len(missing),
                    len(urls),
                    missing[0][1],
                )
            built = pool.map(lambda item: build_index(item[1], known[item[0]][0], cache).header(), missing)
            console = Console(stderr=True)
            headers = dict(
                zip(
                    (number for number, _ in missing),
                    track(built, "fetching shards", len(missing), console=console, disable=not missing),
                    strict=True,
                )
            )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [(state, header or headers[number]) for number, (state, header) in enumerate(known)]


def _states(urls: Sequence[RemoteUrl], cache: ShardCache, pool: ThreadPoolExecutor) -> dict[RemoteUrl, ShardState]:
    """States of remote shards that lie together in directories that can be listed."""
    directories: dict[str, list[RemoteUrl]] = {}
    for url in urls:
        if url.scheme not in READ_ONLY and "?" not in url.url:
            directories.setdefault(url.url.rpartition("/")[0], []).append(url)
    worth_it = [together for together in directories.values() if len(together) >= LISTED_FROM]
    listings = pool.map(lambda together: listed_states(together, cache.patience), worth_it)
    return {url: state for listing in listings for url, state in listing.items()}


def known_header(
    url: RemoteUrl, cache: ShardCache, state: ShardState | None = None
) -> tuple[ShardState, dict[str, Any] | None]:
    """State of a remote shard, asked for unless it is given, and the header of its index in the cache or beside it."""
    state = state or state_of(url, cache.patience)
    header = saved_header(cache.index_path(url, state), state)
    return state, header if header is not None else sidecar_header(url, state, cache)


def sidecar_header(url: RemoteUrl, state: ShardState, cache: ShardCache) -> dict[str, Any] | None:
    """Header of ``<url>.idx``. Raises ValueError when it describes another state of the shard.

    One that was written beside a local shard and copied with it knows no etag: its size counts, and once the
    shard is fetched, all that it says is compared.
    """
    line = read_first_line(url.beside(INDEX_SUFFIX), cache.patience)
    header = parse_header(line) if line else None
    if header is None:
        return None
    size, etag = header["shard_size"], header["etag"]
    if state.size not in (None, size) or etag not in (None, state.etag):
        raise ValueError(
            f"{url.beside(INDEX_SUFFIX)} is stale: it describes a shard of {size} bytes and etag {etag}, but the shard "
            f"has {state.size} bytes and etag {state.etag}; run `altclip data index --rebuild` on it"
        )
    return header


def build_index(url: RemoteUrl, state: ShardState, cache: ShardCache) -> ShardIndex:
    """Fetch a remote shard and index it; the index stays in the cache."""
    descriptor = cache.open(url, state, ahead=True)
    if descriptor is not None:
        return _index_and_close(url, state, cache, descriptor)
    with _one_at_a_time:  # beyond what the limit allows to be open together
        return _index_and_close(url, state, cache, cache.open(url, state))


def _index_and_close(url: RemoteUrl, state: ShardState, cache: ShardCache, descriptor: int | None) -> ShardIndex:
    assert descriptor is not None
    try:
        return cache.index(url, state)
    finally:
        os.close(descriptor)

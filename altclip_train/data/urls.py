"""Which shards a source's urls name: local paths, and remote urls that keep their secrets to themselves."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from braceexpand import braceexpand

INDEX_SUFFIX = ".idx"
BESIDE_SHARDS = (INDEX_SUFFIX, ".safetensors")  # what lies beside shards: indexes and embeddings
SECRET = "(not shown)"
REMOTE = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
# Scheme, user and password, place, then a query or fragment, which may be a signature.
_URL_IN_TEXT = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)(?:[^\s/'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


@dataclass(frozen=True, order=True)
class RemoteUrl:
    """A shard that lies elsewhere. As text it has neither password nor query, so that messages hold no secret."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def scheme(self) -> str:
        match = REMOTE.match(self.url)
        assert match is not None, "expand_urls makes no other"
        return match[1].lower()

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]

    def beside(self, suffix: str) -> RemoteUrl:
        """The url of the file whose name has ``suffix`` in addition; a query stays at its end."""
        place, mark, query = self.url.partition("?")
        return RemoteUrl(f"{place}{suffix}{mark}{query}")


Shard: TypeAlias = Path | RemoteUrl


def place(root: str | Path) -> Shard:
    """A local path, or a url that lies elsewhere."""
    text = str(root)
    return RemoteUrl(text.rstrip("/")) if REMOTE.match(text) else Path(text.removeprefix("file://")).expanduser()


def without_secrets(text: str, url: str = "") -> str:
    """``text`` with every url in it cut down to scheme, host and path, and without the query of ``url``."""
    query = urlsplit(url).query
    if query:
        text = text.replace(query, "…")
    return _URL_IN_TEXT.sub(r"\1\2", text)


def is_secret(name: str) -> bool:
    """Whether a key of a configuration is one whose value nobody may read."""
    return re.search(r"(^|_)(api_?key|access_key|token|secret|password)$", name.lower()) is not None


def shown(value: Any) -> Any:
    """A value of a configuration, its lists and mappings too, without secrets.

    Urls lose passwords and queries; what is called a key, a token, a secret or a password has no value left.
    """
    if isinstance(value, dict):
        return {key: SECRET if one and is_secret(str(key)) else shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(shown, value))
    if not isinstance(value, str):
        return value
    # A text that is one url is cut at its query, which may hold spaces and quotes; in other texts these end a url.
    return without_secrets(value.partition("?")[0] if REMOTE.match(value) else value)


def expand_urls(urls: str | Path | Sequence[str | Path]) -> list[Shard]:
    """Shards that ``urls`` name, in order: braces, globs, and local directories (their ``*.tar``).

    Raises FileNotFoundError for a url that names nothing, ValueError for ``pipe:`` or a shard named twice.
    """
    patterns = [urls] if isinstance(urls, str | Path) else urls
    shards = [shard for pattern in patterns for shard in _expand_url(os.path.expanduser(str(pattern)))]
    twice = [shard for shard, count in Counter(shards).items() if count > 1]
    if twice:
        raise ValueError(
            f"urls name {len(twice)} shards more than once, such as {twice[0]}: name each once; "
            "to see a source more often give it a larger weight"
        )
    return shards


def local_paths(urls: str | Path | Sequence[str | Path]) -> list[Path]:
    """:func:`expand_urls` for what reads local files alone. Raises ValueError for a remote url."""
    shards = expand_urls(urls)
    for shard in shards:
        if isinstance(shard, RemoteUrl):
            raise ValueError(f"{shard}: only local files are read here; copy it to a disk and give its path")
    return [shard for shard in shards if isinstance(shard, Path)]


def _expand_url(url: str) -> list[Shard]:
    if url.startswith("pipe:"):
        raise ValueError(
            f"{without_secrets(url)!r}: 'pipe:' urls run a shell command and are refused; give the path of a tar file, "
            "or train with data.mode=streaming and data.allow_pipe=true if you trust it"
        )
    url = url.removeprefix("file://")
    if os.path.isfile(url):
        return [Path(url)]
    if not REMOTE.match(url) and not _expands_to_remote(url):
        return _expand_local(url)
    shards: list[Shard] = []
    for pattern in braceexpand(url):
        # The query of a signed url holds no pattern.
        listed = "*" in pattern.partition("?")[0] or "[" in pattern.partition("?")[0]
        shards += _list_remote(pattern) if listed else [RemoteUrl(pattern)]
    return shards


def _expands_to_remote(url: str) -> bool:
    if os.path.isdir(url) or "{" not in url:
        return False
    return any(REMOTE.match(pattern) for pattern in braceexpand(url))


def _list_remote(pattern: str) -> list[RemoteUrl]:
    from altclip_train.data.remote import list_urls  # it imports this module

    found = [url for url in list_urls(RemoteUrl(pattern)) if not url.name.endswith(BESIDE_SHARDS)]
    if not found:
        raise FileNotFoundError(
            f"no shard matches {without_secrets(pattern)!r}; if that place cannot be listed, "
            "give the names with braces, such as {000000..000099}.tar"
        )
    return found


def _expand_local(url: str) -> list[Shard]:
    paths: list[Shard] = []
    for pattern in [url] if os.path.isdir(url) else braceexpand(url):
        if os.path.isdir(pattern):
            pattern = os.path.join(glob.escape(pattern), "*.tar")
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [name for name in matches if os.path.isfile(name) and not name.endswith(BESIDE_SHARDS)]
        if not found:
            raise FileNotFoundError(f"no shard matches {pattern!r} (from {url!r}): {_surroundings(pattern)}")
        paths += [Path(name) for name in found]
    return paths


def _surroundings(pattern: str) -> str:
    """What the nearest existing directory of ``pattern`` holds."""
    directory = Path(pattern).absolute().parent
    while not directory.is_dir():
        directory = directory.parent
    names = sorted(entry.name + "/" * entry.is_dir() for entry in directory.iterdir())
    return f"{directory} holds {', '.join(names[:8]) or 'nothing'}{', …' if len(names) > 8 else ''}"

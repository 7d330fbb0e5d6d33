"""Files of remote file systems: what they are, whole copies of them, and patience with what fails in passing.

Every call to a file system is bounded in time; what may pass is tried again, after growing pauses, until
nothing has come for too long. Messages carry neither passwords nor signatures.
"""

from __future__ import annotations

import errno
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from altclip_train.data.index import ShardState
from altclip_train.data.urls import RemoteUrl, without_secrets
from altclip_train.errors import Unreachable

Result = TypeVar("Result")

CHUNK = 8 << 20  # bytes asked for at once
ETAGS = (  # by whatever name a file system has one; else a time stands in for it
    *("ETag", "etag", "md5Hash", "Content-MD5", "checksum", "crc32c", "generation"),
    *("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)
PACKAGES = {"s3": "'altclip_train[s3]'", "s3a": "'altclip_train[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs"}
READ_ONLY = ("http", "https")
LASTING = (IsADirectoryError, NotADirectoryError, ValueError, TypeError, AttributeError)
LASTING_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # of botocore


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on with a file system that fails. A chunk that has come starts the count anew."""

    attempts: int = 8
    first_pause: float = 0.5  # seconds; each further pause is twice as long, and all are drawn from the upper half
    longest_pause: float = 30.0
    answer: float = 60.0  # seconds for one call, such as one chunk
    total: float = 300.0  # seconds from the last success to giving up

    def pause(self, failures: int) -> float:
        return random.uniform(0.5, 1.0) * min(self.longest_pause, self.first_pause * 2 ** (failures - 1))


def state_of(url: RemoteUrl, patience: Patience) -> ShardState:
    """Size and etag of a remote file. Raises FileNotFoundError, PermissionError, Unreachable."""

    def attempt(remote: _Remote) -> ShardState:
        remote.filesystem.invalidate_cache()  # else a listing from before a change would be believed
        info = remote.call(remote.filesystem.info, remote.path)
        if info.get("type") == "directory":
            raise IsADirectoryError("it is a directory: add /*.tar to name the shards in it")
        return _state(info)

    return _patiently(url, patience, attempt)


def _state(info: Mapping[str, Any]) -> ShardState:
    etag = next((str(info[name]).strip('"') for name in ETAGS if info.get(name)), None)
    return ShardState(info.get("size"), etag=etag)


def listed_states(urls: Sequence[RemoteUrl], patience: Patience) -> dict[RemoteUrl, ShardState]:
    """States of files of one directory, by one listing of it; of none where it cannot be listed or says too little."""
    try:
        remote = _Remote(urls[0], patience.total, lambda: None)
        remote.filesystem.invalidate_cache()
        listing = remote.call(remote.filesystem.ls, remote.path.rpartition("/")[0], detail=True)
    except Exception:  # every file system raises errors of its own; asked for one by one, the files tell what it is
        return {}
    infos = {str(info["name"]).rpartition("/")[2]: info for info in listing if info.get("type") == "file"}
    found = {url: infos[name] for url in urls if (name := url.url.rpartition("/")[2]) in infos}
    states = {url: _state(info) for url, info in found.items()}
    # Some file systems list other hashes or times than they give for one file, by which copies are told apart.
    trusted = all(state_of(url, patience) == state for url, state in list(states.items())[:1])
    return states if trusted else {}


def list_urls(pattern: RemoteUrl, patience: Patience | None = None) -> list[RemoteUrl]:
    """Urls of the files that match a glob pattern, sorted."""

    def attempt(remote: _Remote) -> list[RemoteUrl]:
        found = remote.call(remote.filesystem.glob, remote.path)
        return [RemoteUrl(remote.filesystem.unstrip_protocol(name)) for name in sorted(map(str, found))]

    return _patiently(pattern, patience or Patience(), attempt)


def read_first_line(url: RemoteUrl, patience: Patience) -> bytes | None:
    """The first line of a remote file; None when there is no such file."""

    def attempt(remote: _Remote) -> bytes:
        data, size = b"", 1 << 16
        while b"\n" not in data:
            start = len(data)
            data += remote.call(remote.filesystem.cat_file, remote.path, start=start, end=start + size)
            if len(data) < start + size:
                break
        return data.partition(b"\n")[0]

    try:
        return _patiently(url, patience, attempt)
    except (FileNotFoundError, PermissionError):  # object stores that may not be listed deny what is absent
        return None


def read_file(url: RemoteUrl, patience: Patience) -> bytes:
    """All of a small remote file. Raises what :func:`state_of` raises."""
    return _patiently(url, patience, lambda remote: remote.call(remote.filesystem.cat_file, remote.path))


def write(url: RemoteUrl, data: bytes, patience: Patience) -> bool:
    """Write a remote file in one piece; False where that place does not take files."""
    if url.scheme in READ_ONLY:
        return False
    try:
        _patiently(url, patience, lambda remote: remote.call(remote.filesystem.pipe_file, remote.path, data))
    except (PermissionError, NotImplementedError):
        return False
    return True


def upload(file: Path, url: RemoteUrl, patience: Patience) -> None:
    """Copy a local file to a remote place, whole at each attempt, and look at its size there.

    A transfer slower than 1 MB/s is given up.
    Raises FileNotFoundError where there is no such bucket, PermissionError, Unreachable.
    """
    size = file.stat().st_size
    seconds = max(patience.answer, size / 1e6)
    patience = replace(patience, answer=seconds, total=patience.total + seconds)

    def attempt(remote: _Remote) -> None:
        remote.call(remote.filesystem.put_file, str(file), remote.path)
        remote.filesystem.invalidate_cache()
        if (found := remote.call(remote.filesystem.size, remote.path)) != size:
            raise ConnectionError(f"{found} bytes are there of {size} that were sent")

    try:
        _patiently(url, patience, attempt)
    except FileNotFoundError:
        raise FileNotFoundError(f"{url} cannot be written: its bucket or directory does not exist") from None


def remove(url: RemoteUrl, patience: Patience) -> None:
    """Remove a remote file, where there is one. Raises PermissionError, Unreachable."""
    with suppress(FileNotFoundError):
        _patiently(url, patience, lambda remote: remote.call(remote.filesystem.rm_file, remote.path))


def download(url: RemoteUrl, state: ShardState, descriptor: int, patience: Patience) -> None:
    """Copy a remote file of ``state`` into an open local file; a transfer that breaks goes on where it broke.

    Raises ValueError when it changes meanwhile, and what :func:`state_of` raises.
    """
    done, streams = 0, False  # streams: the server gives the file only from its beginning

    def attempt(remote: _Remote) -> None:
        nonlocal done, streams
        done = 0 if streams else done
        options = {"block_size": 0} if streams else {"block_size": CHUNK, "cache_type": "none"}
        with remote.call(remote.filesystem.open, remote.path, "rb", **options) as source:
            try:
                if done:
                    source.seek(done)
                while chunk := remote.call(source.read, CHUNK):
                    _write(descriptor, chunk, done)
                    done += len(chunk)
                    remote.progress()
            except ValueError:
                if streams or url.scheme not in READ_ONLY:
                    raise
                streams = True
                raise ConnectionError("the server gives no parts of files") from None
        if state.size is not None and done != state.size:
            came, done = done, done if done < state.size else 0
            raise ConnectionError(f"{came} bytes came, expected {state.size}")

    _patiently(url, patience, attempt)
    check_unchanged(url, state, state_of(url, patience))


def check_unchanged(url: RemoteUrl, expected: ShardState, found: ShardState) -> None:
    """Raise ValueError naming both states when they differ."""
    if found != expected:
        raise ValueError(
            f"{url} has changed since this run began, or since its manifest was written: it had {_words(expected)}, "
            f"now it has {_words(found)}. "
            "Shards must stay as they are during a run; resume with the old files or start a new run"
        )


def _words(state: ShardState) -> str:
    return f"{state.size} bytes and etag {state.etag}"


def _write(descriptor: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        try:
            written = os.pwrite(descriptor, view, offset)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull from error
            raise
        view, offset = view[written:], offset + written


class DiskFull(Exception):  # noqa: N818
    """No room for the copy: not the remote side's fault, so it is not tried again."""


class _Remote:
    """One attempt at a remote file. Raises ModuleNotFoundError naming the package that its scheme needs."""

    def __init__(self, url: RemoteUrl, seconds: float, progress: Callable[[], None]) -> None:
        self.seconds, self.progress = seconds, progress
        try:
            self.filesystem, self.path = self.call(url_to_fs, url.url, **_options(url.scheme, seconds))
        except ImportError:
            package = PACKAGES.get(url.scheme, f"the fsspec package for {url.scheme}://")
            raise ModuleNotFoundError(f"{url} needs a package that is not installed: pip install {package}") from None

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Its result, or TimeoutError: then the thread that runs it is left behind."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answer.put((function(*arguments, **options), None))
            except BaseException as error:  # handed to the caller
                answer.put((None, error))

        threading.Thread(target=run, name="remote-call", daemon=True).start()
        try:
            value, error = answer.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {self.seconds:g} seconds") from None
        if error is not None:
            raise error
        return value


def _options(scheme: str, seconds: float) -> dict[str, Any]:
    """Time limits of the file system's own, so that a call that is left behind ends too."""
    if scheme in READ_ONLY:
        import aiohttp

        # Its default is five minutes for a whole transfer.
        return {
            "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)}
        }
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds}}
    if scheme == "file":
        return {"auto_mkdir": True}
    return {}


def _patiently(url: RemoteUrl, patience: Patience, attempt: Callable[[_Remote], Result]) -> Result:
    """Result of ``attempt``, tried again while what fails may pass."""
    failures, attempts, since = 0, 0, time.monotonic()

    def progress() -> None:
        nonlocal failures, since
        failures, since = 0, time.monotonic()

    while True:
        attempts += 1
        try:
            return attempt(_Remote(url, patience.answer, progress))
        except (ModuleNotFoundError, DiskFull):
            raise
        except Exception as error:  # every file system raises errors of its own
            cause = _cause(error, url)
            if (lasting := _lasting(cause, url)) is not None:
                raise lasting from None
            failures += 1
            pause, seconds = patience.pause(failures), time.monotonic() - since
            if failures >= patience.attempts or seconds + pause > patience.total:
                # From None: a chain would print the library's message, which may hold a signed url.
                raise Unreachable(
                    f"{url} cannot be read: gave up after {attempts} attempts and {seconds:.0f} seconds without "
                    f"success; last cause: {_describe(cause, url)}"
                ) from None
        time.sleep(pause)


def _cause(error: BaseException, url: RemoteUrl) -> BaseException:
    """fsspec calls every failure of an HTTP server FileNotFoundError; what lies behind it says what it was."""
    while url.scheme in READ_ONLY and error.__cause__ is not None:
        error = error.__cause__
    return error


def _lasting(cause: BaseException, url: RemoteUrl) -> Exception | None:
    """The error to raise at once, or None for what may pass."""
    status = getattr(cause, "status", None)  # of an HTTP answer
    text = f"{url} cannot be read: {_describe(cause, url)}"
    if isinstance(cause, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(f"there is no file {url}")
    if isinstance(cause, PermissionError) or status in (401, 403):
        return PermissionError(text)
    if isinstance(cause, NotImplementedError):
        return NotImplementedError(text)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    if refused or isinstance(cause, LASTING) or type(cause).__name__ in LASTING_NAMES:
        return Unreachable(text)
    return None


def _describe(cause: BaseException, url: RemoteUrl) -> str:
    return without_secrets(f"{type(cause).__name__}: {cause}", url.url)

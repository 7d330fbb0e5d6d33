"""Remote shards as local files: a directory of whole copies, shared by all processes of a machine.

A copy ``<hash of url>-<hash of size and etag>.tar`` is complete from the moment it has that name. Locks are
``flock`` on the files themselves, which the kernel drops with the process that held them: whoever reads a copy
holds its file shared, whoever removes one must hold it alone, and whoever fetches one holds its ``.part``.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from altclip_train.data.index import ShardIndex, ShardState
from altclip_train.data.remote import DiskFull, Patience, check_unchanged, download, state_of
from altclip_train.data.urls import RemoteUrl
from altclip_train.errors import Unreachable
from altclip_train.locks import is_at, lock_alone, remove_unheld

logger = logging.getLogger(__name__)

DEFAULT_BYTES = 50_000_000_000
POLL_SECONDS = 0.05


def default_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "altclip_train" / "shards"


class ShardCache:
    """Whole copies of remote shards, at most ``limit`` bytes of them; those used longest ago go first.

    A copy that any process has open is never removed: only where those alone exceed the limit is it exceeded,
    with a warning. Safe to fork and to pickle.
    """

    def __init__(
        self, directory: str | Path | None = None, limit: int | None = None, *, patience: Patience | None = None
    ) -> None:
        self.directory = Path(directory).expanduser() if directory is not None else default_directory()
        self.limit = DEFAULT_BYTES if limit is None else limit
        self.patience = patience or Patience()
        if self.limit < 1:
            raise ValueError(f"data.cache_bytes={limit}: expected at least 1")
        self._warned = False

    def open(
        self,
        url: RemoteUrl,
        state: ShardState,
        *,
        give_way: Callable[[], bool] = lambda: False,
        ahead: bool = False,
    ) -> int | None:
        """A descriptor of the local copy, fetched if there is none, and kept from removal until it is closed.

        ``give_way`` closes a copy that the caller could do without, while room is short. With ``ahead`` the
        result is None instead of a wait for another process, or of more than three quarters of the limit.
        Raises Unreachable, and ValueError when the remote shard is no longer in ``state``.
        """
        entry = self._entry(url, state)
        while True:
            descriptor = _open_shared(entry, state)
            if descriptor is None:
                descriptor = self._fetch(url, state, entry, give_way, ahead)
            if descriptor is not None or ahead:
                return descriptor
            time.sleep(POLL_SECONDS)  # another process fetches it

    def index(self, url: RemoteUrl, state: ShardState) -> ShardIndex:
        """The index of a copy that the caller has open; it is kept when the copy is removed."""
        path = self.index_path(url, state)
        index = ShardIndex.load(path, state)
        if index is None:
            index = ShardIndex.build(self._entry(url, state), state=state, name=url)
            index.save(path)
        else:
            _touch(path)
        return index

    def index_path(self, url: RemoteUrl, state: ShardState) -> Path:
        return self._entry(url, state).with_suffix(".idx")

    def _entry(self, url: RemoteUrl, state: ShardState) -> Path:
        digests = (hashlib.sha256(repr(part).encode()).hexdigest() for part in (url.url, (state.size, state.etag)))
        return self.directory / ("-".join(digest[:24] for digest in digests) + ".tar")

    def _fetch(
        self, url: RemoteUrl, state: ShardState, entry: Path, give_way: Callable[[], bool], ahead: bool
    ) -> int | None:
        """Fetch a shard into ``entry``; None if another process is at it, or there is no room to do so ahead."""
        part = entry.with_suffix(".part")
        descriptor = self._open_part(part)
        if descriptor is None:
            return None
        try:
            if entry.exists():  # since we last looked
                part.unlink()
                os.close(descriptor)
                return None
            if not self._reserve(descriptor, state.size or 0, give_way, ahead):
                part.unlink()
                os.close(descriptor)
                return None
            check_unchanged(url, state, state_of(url, self.patience))
            download(url, state, descriptor, self.patience)
            os.fsync(descriptor)
            with self._alone():  # else whoever counts might find it under neither name
                os.replace(part, entry)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException as error:
            with suppress(OSError):
                part.unlink()
            os.close(descriptor)
            if isinstance(error, DiskFull):
                raise Unreachable(
                    f"the disk of {self.directory} is full: lower data.cache_bytes ({self.limit}), "
                    "or set data.cache_dir to a larger one"
                ) from None
            raise
        if os.fstat(descriptor).st_nlink == 0:  # removed in the moment between the two locks
            os.close(descriptor)
            return None
        return descriptor

    def _open_part(self, part: Path) -> int | None:
        """Descriptor of the file to fetch into, held alone; None while another process holds it."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Unreachable(
                f"remote shards need a directory for their copies, but {self.directory} cannot be written "
                f"({error.strerror}): set data.cache_dir"
            ) from None
        if lock_alone(descriptor) and is_at(descriptor, part):
            return descriptor
        os.close(descriptor)
        return None

    def _reserve(self, descriptor: int, size: int, give_way: Callable[[], bool], ahead: bool) -> bool:
        """Give the empty file of a fetch its full size, so that other processes count it."""
        limit = self.limit * 3 // 4 if ahead else self.limit
        with self._alone():
            os.ftruncate(descriptor, 0)
            missing = self._make_room(size, limit)
            while missing > 0 and not ahead and give_way():
                missing = self._make_room(size, limit)
            if missing > 0 and ahead:
                return False
            if missing > 0 and not self._warned:
                self._warned = True
                logger.warning(
                    "the shards in use at one time need %d bytes more than data.cache_bytes=%d: raise it",
                    missing,
                    self.limit,
                )
            os.ftruncate(descriptor, size)
            return True

    def _make_room(self, size: int, limit: int) -> int:
        """Remove what was used longest ago and is not in use; returns how many bytes are still missing."""
        files: list[tuple[int, int, str]] = []  # time of last use, bytes, path
        with os.scandir(self.directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a fetch that failed
                    if entry.name.endswith((".tar", ".part", ".idx")):
                        stat = entry.stat()
                        files.append((stat.st_mtime_ns, stat.st_size, entry.path))
        missing = size + sum(length for _, length, _ in files) - limit
        for _, length, path in sorted(files):
            if missing <= 0:
                break
            if length and remove_unheld(path):
                missing -= length
        return missing

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time counts, removes and reserves."""
        descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _open_shared(entry: Path, state: ShardState) -> int | None:
    """Descriptor of a whole copy, held shared; None if there is none."""
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # whoever removes files holds them but for a moment
    stat = os.fstat(descriptor)
    if stat.st_nlink and state.size in (None, stat.st_size):
        _touch(entry)
        return descriptor
    os.close(descriptor)
    if stat.st_nlink:
        remove_unheld(entry)  # shortened by some accident
    return None


def _touch(path: Path) -> None:
    with suppress(OSError):  # removed meanwhile, or another user's
        os.utime(path)

"""Shards as an endless stream, for what has no index or comes out of a command: `data.mode=streaming`.

It draws, shuffles and groups as webdataset's resampled pipeline does, without its traps: seeds are reproducible and
differ by rank and loader process, no GOPEN_ or WDS_ variable redirects what is opened, damage that ends a shard
early is counted, only members that the stage's decoder wants are read, and those by that decoder alone.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import signal
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeAlias

from braceexpand import braceexpand
from torch.utils.data import IterableDataset, get_worker_info

from altclip_train.data.cache import ShardCache
from altclip_train.data.decoders import Decoder, Record
from altclip_train.data.plan import stable_hash
from altclip_train.data.remote import state_of
from altclip_train.data.samples import BadSample
from altclip_train.data.scan import MEMBER_NAME
from altclip_train.data.shards import MAX_MEMBER_BYTES
from altclip_train.data.sources import Source, weights_of
from altclip_train.data.urls import RemoteUrl, Shard, expand_urls, without_secrets
from altclip_train.types import SkippedSample

PROMISE = (
    "data.mode=streaming promises less than data.mode=indexed: sources and shards are drawn with replacement, so a "
    "sample may come twice before another comes once; other numbers of ranks or loader processes draw other samples; "
    "a resumed run draws anew instead of going on where it stopped"
)
BUFFER = 1000  # samples among which each is drawn
SAMPLES_IN_A_ROW, SHARDS_IN_A_ROW = 1000, 20  # that may be unusable before the run stops
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
SECONDS_TO_END = 5.0  # for a command whose output has ended


@dataclass(frozen=True)
class PipeUrl:
    """A shell command that writes a tar file. As text it holds no secrets of the urls in it."""

    command: str = field(repr=False)

    def __str__(self) -> str:
        return without_secrets(f"pipe:{self.command}")


Streamed: TypeAlias = Shard | PipeUrl


class RawSample(NamedTuple):
    """The wanted members of a sample, undecoded."""

    source: Source
    shard: str
    key: str
    members: dict[str, bytes]
    fault: BadSample | None  # of a member that was not read, or of the whole shard


class StreamedPairs(IterableDataset[Any], Generic[Record]):
    """One rank's batches, without end, so that every rank has as many as the trainer takes.

    Each loader process draws sources by weight and shards of a source evenly, both with replacement, and reads a
    shard once from front to end. By default a source weighs as many as it has shards. What cannot be used is left
    out and named in ``skipped`` of the next batch. Draws depend on seed, rank, loader process, and the position
    last given to ``seek``.
    """

    samples = None  # of each source: nobody has counted them

    def __init__(
        self,
        *,
        sources: Sequence[Source | str | Mapping[str, Any]],
        seed: int,
        decoder: Decoder[Record],
        batch_size: int,
        rank: int = 0,
        allow_pipe: bool = False,
        cache: ShardCache | None = None,
    ) -> None:
        self.sources = [Source.from_config(source) for source in sources]
        if not self.sources:
            raise ValueError("no data source is given")
        self.shards = [_expand(source.urls, allow_pipe=allow_pipe) for source in self.sources]
        for source, shards in zip(self.sources, self.shards, strict=True):
            if not shards:
                raise ValueError(f"source {source.label!r} has no shards: check its urls")
        self.weights = weights_of(self.sources, default=list(map(len, self.shards)))
        self.seed, self.rank, self.begin = seed, rank, 0
        self.decoder, self.batch_size = decoder, batch_size
        self.cache = cache
        names = [list(map(str, shards)) for shards in self.shards]
        self.fingerprint = hashlib.sha256(json.dumps(["streaming", seed, names, self.weights]).encode()).hexdigest()

    def seek(self, position: int) -> None:
        """Let the next pass draw other samples than one from another position."""
        self.begin = position

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        process = 0 if worker is None else worker.id
        generator = random.Random(stable_hash("streaming", self.seed, self.rank, process, self.begin))
        records: list[Record] = []
        skipped: list[SkippedSample] = []
        for record in self.records(generator, skipped):
            records.append(record)
            if len(records) == self.batch_size:
                yield self.decoder.batch(records, skipped.copy())
                records.clear()
                skipped.clear()

    def records(self, generator: random.Random, skipped: list[SkippedSample]) -> Iterator[Record]:
        """Decoded samples without end; what cannot be used is added to ``skipped``. Raises ValueError, Unreachable."""
        failures = 0
        for raw in _shuffled(self._mixed(generator), generator):
            try:
                if raw.fault is not None:
                    raise raw.fault
                record = self.decoder.decode(raw.members, raw.key, raw.source, lambda _, n: generator.randrange(n))
            except BadSample as error:
                skipped.append(SkippedSample(error.reason, raw.shard, raw.key, error.detail))
                failures += 1
                if failures > SAMPLES_IN_A_ROW:
                    raise ValueError(_nothing(f"{failures} samples", raw.shard, error)) from None
                continue
            failures = 0
            yield record

    def _mixed(self, generator: random.Random) -> Iterator[RawSample]:
        """Samples of sources drawn by weight."""
        streams = [self._samples(number, generator) for number in range(len(self.sources))]
        while True:
            (stream,) = generator.choices(streams, self.weights)
            yield next(stream)

    def _samples(self, number: int, generator: random.Random) -> Iterator[RawSample]:
        """Samples of shards of one source, drawn evenly; after them what is wrong with their shard, as one more."""
        source, failures = self.sources[number], 0
        while True:
            shard = generator.choice(self.shards[number])
            name, found, fault = str(shard), False, None
            try:
                with _opened(shard, self.cache) as file:
                    for key, members, of_member in _read_tar(file, self.decoder):
                        found = True
                        yield RawSample(source, name, key, members, of_member)
            except DAMAGE as error:
                fault = BadSample("shard_damaged", f"the rest of it is lost: {error}")
            except OSError as error:
                fault = BadSample("shard_unreadable", without_secrets(str(error)))
            failures = 0 if found else failures + 1
            if failures > SHARDS_IN_A_ROW:
                raise ValueError(_nothing(f"{failures} shards", name, fault or "no sample in it"))
            if fault is not None:
                yield RawSample(source, name, "", {}, fault)


def _nothing(what: str, shard: str, cause: object) -> str:
    return f"{what} in a row hold nothing that can be used, at last {shard} ({cause}): mend or remove them"


def _shuffled(samples: Iterator[RawSample], generator: random.Random) -> Iterator[RawSample]:
    """The same samples in another order: each takes the place of one drawn from a buffer."""
    buffer: list[RawSample] = []
    for sample in samples:
        if len(buffer) < BUFFER:
            buffer.append(sample)
            continue
        place = generator.randrange(BUFFER)
        yield buffer[place]
        buffer[place] = sample


def _expand(urls: str | Path | Sequence[str | Path], *, allow_pipe: bool) -> list[Streamed]:
    """Shards that ``urls`` name; commands only if they are allowed, else :func:`expand_urls` refuses them."""
    patterns = list(map(str, [urls] if isinstance(urls, str | Path) else urls))
    pipes = [pattern for pattern in patterns if allow_pipe and pattern.startswith("pipe:")]
    commands = [PipeUrl(url.removeprefix("pipe:")) for pattern in pipes for url in braceexpand(pattern)]
    return [*expand_urls([pattern for pattern in patterns if pattern not in pipes]), *commands]


@contextmanager
def _opened(shard: Streamed, cache: ShardCache | None) -> Iterator[IO[bytes]]:
    """The bytes of a shard from the first to the last; of a remote one those of its copy. Raises OSError."""
    if isinstance(shard, PipeUrl):
        with _output_of(shard.command) as file:
            yield file
    elif isinstance(shard, RemoteUrl):
        cache = cache or ShardCache()
        descriptor = cache.open(shard, state_of(shard, cache.patience))
        assert descriptor is not None
        with os.fdopen(descriptor, "rb") as file:
            yield file
    else:
        with open(shard, "rb") as file:
            yield file


@contextmanager
def _output_of(command: str) -> Iterator[IO[bytes]]:
    """What a shell command writes. Raises OSError with its status if it fails, even where its output looks whole."""
    # A session of its own, so that all processes of a pipeline can be ended together.
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        yield process.stdout
        while process.stdout.read(1 << 20):  # what follows the end of the tar; unread, the command would fail
            pass
        _check_status(process.wait())
    except DAMAGE:
        with suppress(subprocess.TimeoutExpired):  # it still writes: the damage is not of its making
            _check_status(process.wait(SECONDS_TO_END))
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def _check_status(status: int) -> None:
    if status != 0:
        raise OSError(f"its command ended with status {status}")


def _read_tar(file: IO[bytes], decoder: Decoder[Any]) -> Iterator[tuple[str, dict[str, bytes], BadSample | None]]:
    """Key, wanted members and fault of each sample, grouped as in an index. Raises one of ``DAMAGE``, OSError."""
    key: str | None = None
    fields, members, fault, damage = set[str](), dict[str, bytes](), None, None
    with closing(tarfile.open(fileobj=file, mode="r|*", tarinfo=_StrictHeader)) as tar:
        try:
            for info in tar:
                # Absent from the type stubs; unless emptied it keeps every member's header.
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                match = MEMBER_NAME.fullmatch(info.name) if info.isreg() and not info.issparse() else None
                if match is None:
                    continue
                name, data = match[2].lower(), None
                readable = info.size <= MAX_MEMBER_BYTES
                if decoder.wanted(name) and readable:
                    data = tar.extractfile(info).read()  # type: ignore[union-attr]
                if match[1] != key or name in fields:
                    if key is not None:
                        yield key, members, fault
                    key, fields, members, fault = match[1], set(), {}, None
                fields.add(name)
                if data is not None:
                    members[name] = data
                elif not readable and decoder.wanted(name):
                    fault = BadSample("member_bytes", f"{name} has {info.size} bytes, limit {MAX_MEMBER_BYTES}")
        except DAMAGE as error:
            damage = error
    if key is not None:
        yield key, members, fault  # what is missing in the last one, its decoder will tell
    if damage is not None:
        raise damage


class _StrictHeader(tarfile.TarInfo):
    """A header that is damaged, or missing at the end, is an error; ``tarfile`` takes both for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictHeader:
        try:
            return super().fromtarfile(tarfile_)
        # Absent from the type stubs; it is the block of zeros that ends an archive.
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no tar header at byte {tarfile_.offset}: {error}") from None

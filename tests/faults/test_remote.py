"""Remote shards over the real S3 protocol while the store stops, slows and cuts; and fetches that are killed.

pip install -c constraints.txt -e '.[test,s3]' 'moto[server]' boto3 && pytest -m faults tests/faults/test_remote.py
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from altclip_train.data import remote
from altclip_train.data.cache import ShardCache
from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import TextPairDecoder
from altclip_train.data.index import ShardIndex, index_path
from altclip_train.data.indexing import IndexJob, index_sources
from altclip_train.data.remote import Patience, state_of
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import RemoteUrl, expand_urls
from altclip_train.errors import Unreachable
from altclip_train.training.checkpoints import AtomicCheckpointIO
from altclip_train.training.manifest import newest_whole
from altclip_train.training.mirror import FACTS, Mirror, fetch_run
from altclip_train.types import PackedTokens
from tests.servers import proxy_to, serve
from tests.unit.test_remote import copies, shard, texts_of

pytestmark = pytest.mark.faults

PATIENCE = Patience(attempts=6, first_pause=0.1, longest_pause=0.5, answer=2.0, total=30.0)
BIG = shard("a", padding=3_000_000)


class Store:
    """A moto server in a process of its own, seen through a proxy."""

    def __init__(self, process, proxy, client):
        self.process, self.proxy, self.client = process, proxy, client

    def put(self, key, data):
        self.client.put_object(Bucket="shards", Key=key, Body=data)

    def names(self):
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket="shards").get("Contents", [])]


@pytest.fixture(scope="module")
def moto():
    """A running S3 server, and its port."""
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=1).close()
                break
            time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(moto, monkeypatch):
    boto3 = pytest.importorskip("boto3")
    s3fs = pytest.importorskip("s3fs")
    process, port = moto
    for name, value in {
        "AWS_ACCESS_KEY_ID": "CANARYID",
        "AWS_SECRET_ACCESS_KEY": "CANARYKEY",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "CHUNK", 1 << 18)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # else its own pauses would hide ours
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket="shards")
    with proxy_to(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(process, proxy, client)
        for key in store.names():
            client.delete_object(Bucket="shards", Key=key)
        yield store
        s3fs.S3FileSystem.clear_instance_cache()


def fetched(cache, url):
    """What the copy of a shard holds."""
    descriptor = cache.open(RemoteUrl(url), state_of(RemoteUrl(url), cache.patience))
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size + 1, 0)
    finally:
        os.close(descriptor)


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", 10**9, patience=PATIENCE)


def test_shards_are_listed_and_read(store, cache):
    for n in range(3):
        store.put(f"d/{n}.tar", shard(f"a{n}", f"b{n}"))
    for urls in ("s3://shards/d/*.tar", "s3://shards/d/{0..2}.tar"):
        reader = ShardReader(expand_urls(urls), cache=cache)
        assert texts_of(reader) == [b"a0", b"b0", b"a1", b"b1", b"a2", b"b2"]
    assert len(copies(cache)) == 3


@pytest.mark.usefixtures("store")
def test_absent_shards_are_an_error_at_once(cache):
    begun = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"there is no file s3://shards/none\.tar"):
        ShardReader(expand_urls("s3://shards/none.tar"), cache=cache)
    with pytest.raises(FileNotFoundError, match=r"no shard matches 's3://shards/none\*"):
        expand_urls("s3://shards/none*")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("cuts", [1, 4])
def test_connections_cut_in_mid_transfer(store, cache, cuts):
    store.put("0.tar", BIG)
    store.proxy.cut_after, store.proxy.cuts = 100_000, cuts
    assert fetched(cache, "s3://shards/0.tar") == BIG
    assert store.proxy.cuts == 0
    assert store.proxy.passed < 1.5 * len(BIG)  # what had come is not fetched again


def test_connections_that_are_always_cut(store, cache):
    store.put("0.tar", BIG)
    url = RemoteUrl("s3://shards/0.tar")
    state = state_of(url, PATIENCE)
    store.proxy.cut_after, store.proxy.cuts = 100_000, 10**6
    with pytest.raises(
        Unreachable, match=r"s3://shards/0\.tar cannot be read: gave up after \d+ attempts.*last cause"
    ) as error:
        cache.open(url, state)
    assert "CANARY" not in str(error.value)
    assert os.listdir(cache.directory) == [".lock"]


def test_slow_store(store, cache):
    store.put("0.tar", BIG)
    store.proxy.bytes_per_second = 1_000_000
    begun = time.monotonic()
    assert fetched(cache, "s3://shards/0.tar") == BIG
    assert time.monotonic() - begun > 2


def test_store_that_stops_for_a_while(store, cache):
    store.put("0.tar", BIG)
    state = state_of(RemoteUrl("s3://shards/0.tar"), PATIENCE)
    store.process.send_signal(signal.SIGSTOP)
    goes_on = threading.Timer(4, store.process.send_signal, [signal.SIGCONT])
    goes_on.start()
    descriptor = cache.open(RemoteUrl("s3://shards/0.tar"), state)
    os.close(descriptor)
    goes_on.join()
    assert [path.read_bytes() for path in copies(cache)] == [BIG]


def test_store_that_stops_for_good(store, tmp_path):
    store.put("0.tar", BIG)
    url = RemoteUrl("s3://shards/0.tar")
    state = state_of(url, PATIENCE)
    cache = ShardCache(tmp_path, patience=Patience(attempts=3, first_pause=0.1, answer=1.0, total=10.0))
    store.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(Unreachable, match=r"s3://shards/0\.tar.*gave up after 3 attempts.*no answer|imeout"):
            cache.open(url, state)
        assert time.monotonic() - begun < 10
    finally:
        store.process.send_signal(signal.SIGCONT)


def test_shard_replaced_during_a_run(store, cache):
    store.put("0.tar", shard("a"))
    reader = ShardReader(expand_urls("s3://shards/0.tar"), cache=cache)
    store.put("0.tar", shard("b"))
    for path in copies(cache):
        path.unlink()
    with pytest.raises(ValueError, match=r"s3://shards/0\.tar has changed since this run began.*etag"):
        reader.read(0, 0)


def fetch(url, directory):
    """Run in another process; returns the size of the copy."""
    return len(fetched(ShardCache(directory, patience=PATIENCE), url))


def test_processes_that_want_the_same_shard_fetch_it_once(tmp_path):
    with serve(**{"0.tar": shard("a")}) as files:
        files.delay = 0.5
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            sizes = pool.starmap(fetch, [(f"{files.url}/0.tar", tmp_path)] * 4, chunksize=1)
        assert sizes == [len(shard("a"))] * 4
        assert files.downloads("/0.tar") == 1


def test_killed_fetch_leaves_no_bad_entry_and_blocks_nobody(tmp_path):
    with serve(**{"0.tar": shard("a")}) as files:
        files.delay = 30
        process = multiprocessing.get_context("spawn").Process(target=fetch, args=(f"{files.url}/0.tar", tmp_path))
        process.start()
        while not files.downloads("/0.tar"):
            time.sleep(0.01)
        process.kill()
        process.join()
        assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".part"]
        files.delay = 0
        begun = time.monotonic()
        assert fetch(f"{files.url}/0.tar", tmp_path) == len(shard("a"))
        assert time.monotonic() - begun < 2
        assert [path.read_bytes() for path in tmp_path.glob("*.tar")] == [files.contents["/0.tar"]]
        assert not list(tmp_path.glob("*.part"))


def test_indexes_are_written_into_the_bucket(store, cache):
    for n in range(3):
        store.put(f"d/{n}.tar", shard(f"a{n}"))
    job = IndexJob(cache=cache)
    for built in (3, 0):
        (report,) = index_sources(["s3://shards/d/*.tar"], job, processes=2)
        assert [shard.error for shard in report.shards] == [None] * 3
        assert sum(shard.built for shard in report.shards) == built
    assert [name for name in store.names() if name.endswith(".idx")] == [f"d/{n}.tar.idx" for n in range(3)]


class Bytes:
    """A tokenizer that gives utf-8 bytes."""

    def pack(self, texts, max_length):
        return PackedTokens.from_lists([list(text.encode())[:max_length] for text in texts])


def pairs(directory, names):
    """Shards of parallel text with their indexes, by name."""
    contents = {}
    for name in names:
        path = directory / name
        with tarfile.open(path, "w") as tar:
            for n in range(50):
                for language in ("en", "zh"):
                    info = tarfile.TarInfo(f"{name[0]}{n:02d}.{language}.txt")
                    info.size = 3
                    tar.addfile(info, io.BytesIO(b"cat"))
        ShardIndex.open(path)
        contents |= {name: path.read_bytes(), f"{name}.idx": index_path(path).read_bytes()}
    return contents


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_share_copies_and_fetch_ahead(tmp_path, workers):
    with serve(**pairs(tmp_path, [f"{n}.tar" for n in range(4)])) as files:
        cache = ShardCache(tmp_path / "cache", 10**9, patience=PATIENCE)
        dataset = PairDataset(
            sources=[files.url + "/{0..3}.tar"],
            plan_seed=0,
            decoder=TextPairDecoder(student_tokenizer=Bytes(), teacher_tokenizer=Bytes(), max_length=9),
            cache=cache,
        )
        assert len(dataset) == 200
        assert copies(cache) == []
        context = "forkserver" if workers else None
        loader = DataLoader(
            dataset,
            batch_sampler=[range(n, n + 10) for n in range(0, 200, 10)],
            collate_fn=as_it_is,
            num_workers=workers,
            multiprocessing_context=context,
        )
        keys = [key for batch in loader for key in batch.keys]
        assert sorted(keys) == [f"{shard}{n:02d}" for shard in range(4) for n in range(50)]
        assert [files.downloads(f"/{n}.tar") for n in range(4)] == [1] * 4
        dataset.reader.close()


def as_it_is(batch):
    return batch


def test_a_checkpoint_whose_copy_is_stopped_in_the_middle_leaves_the_one_before(store, tmp_path):
    """Stock Lightning: writes to the url alone, without a manifest, and picks no older checkpoint."""
    run = tmp_path / "run"
    copies = Mirror(run, "s3://shards/runs", replace(PATIENCE, total=3.0))
    run.mkdir()
    for name in FACTS:
        (run / name).write_text("{}")

    def save(step):
        path = run / "checkpoints" / f"step_{step:09d}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.rand(600_000)}, path)
        return path

    def fetched(name):
        there = fetch_run(RemoteUrl("s3://shards/runs/run"), tmp_path / name, PATIENCE)
        return newest_whole(there / "checkpoints")[0].name

    with pytest.raises(FileNotFoundError, match="its bucket or directory does not exist"):
        Mirror(run, "s3://absent/runs", PATIENCE).begin()
    copies.begin()
    copies.copy(save(10), keep=1)
    second = save(20)
    store.proxy.stop_after = store.proxy.asked + 1_000_000  # of 2.4 MB
    store.proxy.on_stop = lambda: store.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable, match=r"step_000000020\.ckpt"):
            copies.copy(second, keep=1)
    finally:
        store.process.send_signal(signal.SIGCONT)
    assert fetched("after the stop") == "step_000000010.ckpt"
    # Stopped for a while only: the copy is tried again.
    copies.patience = PATIENCE
    store.proxy.stop_after = store.proxy.asked + 1_000_000
    begun = threading.Timer(4.0, store.process.send_signal, [signal.SIGCONT])
    store.proxy.on_stop = lambda: (store.process.send_signal(signal.SIGSTOP), begun.start())
    copies.copy(second, keep=1)
    begun.join()
    assert fetched("after the copy") == "step_000000020.ckpt"
    assert [name for name in store.names() if "000010" in name] == []

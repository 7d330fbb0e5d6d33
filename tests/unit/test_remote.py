"""Remote shards: fetched whole and once, through every kind of failing transfer, into a cache of bounded size."""

import io
import json
import os
import pickle
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from altclip_train.data import remote
from altclip_train.data.cache import ShardCache
from altclip_train.data.index import ShardIndex, index_path
from altclip_train.data.indexing import IndexJob, index_sources
from altclip_train.data.remote import Patience, state_of
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import RemoteUrl, expand_urls, without_secrets
from altclip_train.errors import Unreachable
from tests.servers import serve

QUICK = Patience(attempts=4, first_pause=0.01, longest_pause=0.02, answer=1.0, total=10.0)
SIZE = 10240  # of a shard of one sample


def shard(*keys, padding=0):
    """A tar of one small text per key."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in keys:
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = len(key) + padding
            tar.addfile(info, io.BytesIO(key.encode() + bytes(padding)))
    return buffer.getvalue()


def cache_in(directory, limit=10**9, patience=QUICK):
    return ShardCache(directory / "cache", limit, patience=patience)


def reader_of(urls, cache):
    return ShardReader(expand_urls(urls), cache=cache)


def texts_of(reader):
    return [reader.read(shard, i)["txt"] for shard, count in enumerate(reader.counts) for i in range(count)]


def copies(cache):
    return sorted(cache.directory.glob("*.tar"))


@pytest.fixture
def memory():
    """An empty place for memory:// files."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)


def test_remote_shards_read_like_local_ones(tmp_path, memory):
    for name in ("0.tar", "1.tar"):
        memory.pipe_file(f"/d/{name}", shard(f"a{name[0]}", f"b{name[0]}"))
    reader = reader_of("memory://d/{0..1}.tar", cache_in(tmp_path))
    assert texts_of(reader) == [b"a0", b"b0", b"a1", b"b1"]
    assert reader.key(1, 0) == "a1"
    assert pickle.loads(pickle.dumps(reader)).read(1, 1) == {"txt": b"b1"}


def test_fingerprint_does_not_depend_on_where_shards_lie(tmp_path, memory):
    memory.pipe_file("/d/0.tar", shard("a"))
    (tmp_path / "0.tar").write_bytes(shard("a"))
    assert (
        reader_of("memory://d/0.tar", cache_in(tmp_path)).fingerprint == ShardReader([tmp_path / "0.tar"]).fingerprint
    )


def test_globs_are_listed_without_indexes(memory):
    for name in ("1.tar", "0.tar", "0.tar.idx", "note.md"):
        memory.pipe_file(f"/d/{name}", b"")
    assert [url.url for url in expand_urls("memory://d/*.tar*")] == ["memory:///d/0.tar", "memory:///d/1.tar"]
    with pytest.raises(FileNotFoundError, match=r"no shard matches 'memory://d/x\*'.*braces"):
        expand_urls("memory://d/x*")


def test_unknown_schemes_and_missing_packages_say_what_to_do(tmp_path):
    with pytest.raises(Unreachable, match="nope"):
        reader_of("nope://d/0.tar", cache_in(tmp_path))
    if not importable("s3fs"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'altclip_train\[s3\]'"):
            reader_of("s3://d/0.tar", cache_in(tmp_path))


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_shard_is_fetched_once_and_then_read_from_the_cache(tmp_path):
    with serve(**{"0.tar": shard("a")}) as files:
        for _ in range(3):
            assert texts_of(reader_of(f"{files.url}/0.tar", cache_in(tmp_path))) == [b"a"]
        assert files.downloads("/0.tar") == 1


def test_index_beside_a_shard_saves_fetching_it(tmp_path):
    (tmp_path / "0.tar").write_bytes(shard("a"))
    ShardIndex.open(tmp_path / "0.tar")
    with serve(**{"0.tar": shard("a"), "0.tar.idx": index_path(tmp_path / "0.tar").read_bytes()}) as files:
        reader = reader_of(f"{files.url}/0.tar", cache_in(tmp_path))
        assert reader.counts == [1]
        assert files.downloads("/0.tar") == 0
        assert texts_of(reader) == [b"a"]


def test_without_an_index_all_shards_are_fetched_with_a_word_how_to_avoid_it(tmp_path, caplog):
    with serve(**{f"{n}.tar": shard("a") for n in range(3)}) as files:
        assert reader_of(files.url + "/{0..2}.tar", cache_in(tmp_path)).counts == [1, 1, 1]
    assert "3 of 3 remote shards have no index beside them" in caplog.text
    assert "altclip data index" in caplog.text


def test_stale_index_beside_a_shard_is_refused(tmp_path):
    (tmp_path / "0.tar").write_bytes(shard("a", padding=20_000))
    ShardIndex.open(tmp_path / "0.tar")
    with (
        serve(**{"0.tar": shard("a"), "0.tar.idx": index_path(tmp_path / "0.tar").read_bytes()}) as files,
        pytest.raises(ValueError, match=r"0\.tar\.idx is stale: it describes a shard of 30720 bytes.*10240 bytes"),
    ):
        reader_of(f"{files.url}/0.tar", cache_in(tmp_path))


def test_index_of_another_shard_of_the_same_size_is_noticed_when_it_is_fetched(tmp_path):
    (tmp_path / "0.tar").write_bytes(shard("b"))
    ShardIndex.open(tmp_path / "0.tar")
    with serve(**{"0.tar": shard("a"), "0.tar.idx": index_path(tmp_path / "0.tar").read_bytes()}) as files:
        reader = reader_of(f"{files.url}/0.tar", cache_in(tmp_path))
        with pytest.raises(ValueError, match="changed"):
            reader.read(0, 0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("faults", [["503", "503"], ["cut"], ["short"], ["hang"], ["cut", "503", "short", "cut"]])
@pytest.mark.parametrize("ranges", [True, False])
def test_transfers_that_fail_in_passing_end_well(tmp_path, faults, ranges):
    with serve(**{"0.tar": shard("a", "b", padding=9_000)}) as files:
        files.ranges = ranges
        files.faults.append("")
        cache = cache_in(tmp_path, patience=Patience(attempts=9, first_pause=0.01, answer=0.5))
        url = RemoteUrl(f"{files.url}/0.tar")
        state = state_of(url, QUICK)
        files.faults.clear()
        files.faults.extend(faults)
        os.close(cache.open(url, state))
        assert [path.read_bytes() for path in copies(cache)] == [files.contents["/0.tar"]]


@pytest.mark.usefixtures("small_chunks")
def test_broken_transfer_goes_on_where_it_broke(tmp_path):
    with serve(**{"0.tar": shard("a", padding=90_000)}) as files:
        cache = cache_in(tmp_path)
        url = RemoteUrl(f"{files.url}/0.tar")
        files.faults.extend([""] * 15 + ["cut"])
        os.close(cache.open(url, state_of(url, QUICK)))
        chunks = -(-len(files.contents["/0.tar"]) // 4096)
        assert files.downloads("/0.tar") == chunks + 1


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("503", "503"),
        ("cut", "ContentLengthError"),
        ("short", "bytes came, expected 10240"),
        ("hang", "no answer|imeout"),
    ],
)
def test_transfers_that_keep_failing_end_with_url_attempts_and_cause(tmp_path, fault, cause):
    with serve(**{"0.tar": shard("a")}) as files:
        url = RemoteUrl(f"{files.url}/0.tar?sig=SECRET")
        state = state_of(url, QUICK)
        files.faults.extend([fault] * 50)
        cache = cache_in(tmp_path, patience=Patience(attempts=3, first_pause=0.01, answer=0.3, total=10))
        begun = time.monotonic()
        with pytest.raises(
            Unreachable, match=rf"/0\.tar cannot be read: gave up after \d+ attempts.*({cause})"
        ) as error:
            cache.open(url, state)
        assert time.monotonic() - begun < 8
        assert "SECRET" not in str(error.value)
        assert os.listdir(cache.directory) == [".lock"]


def test_total_time_is_bounded(tmp_path):
    with serve(**{"0.tar": shard("a")}) as files:
        files.faults.extend(["503"] * 1000)
        cache = cache_in(tmp_path, patience=Patience(attempts=1000, first_pause=0.05, longest_pause=0.05, total=0.5))
        url = RemoteUrl(f"{files.url}/0.tar")
        state = state_of(url, QUICK)
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            cache.open(url, state)
        assert 0.3 < time.monotonic() - begun < 3


@pytest.mark.parametrize(("name", "error"), [("1.tar", "there is no file"), ("0.tar", "403")])
def test_lasting_errors_are_not_tried_again(tmp_path, name, error):
    with serve(**{"0.tar": shard("a")}) as files:
        url = RemoteUrl(f"{files.url}/{name}")
        state = state_of(RemoteUrl(f"{files.url}/0.tar"), QUICK)
        files.faults.extend(["403"] * 9 if name == "0.tar" else [])
        with pytest.raises(OSError, match=error):
            remote.download(url, state, os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT), QUICK)
        assert len(files.requests) < 5


def test_shard_that_changes_during_a_run_is_an_error(tmp_path):
    with serve(**{"0.tar": shard("a"), "1.tar": shard("b")}) as files:
        cache = cache_in(tmp_path)
        reader = reader_of(files.url + "/{0..1}.tar", cache)
        files.contents["/0.tar"] = shard("c")
        for path in copies(cache):
            path.unlink()
        assert reader.read(1, 0) == {"txt": b"b"}
        with pytest.raises(ValueError, match=r"0\.tar has changed since this run began.*etag"):
            reader.read(0, 0)


@pytest.mark.usefixtures("small_chunks")
def test_shard_that_changes_while_it_is_fetched_is_an_error(tmp_path):
    with serve(**{"0.tar": shard("a", padding=90_000)}) as files:
        cache, url = cache_in(tmp_path), RemoteUrl(f"{files.url}/0.tar")
        state = state_of(url, QUICK)
        files.delay = 0.02
        replaced = threading.Timer(0.2, lambda: files.contents.update({"/0.tar": shard("b", padding=90_000)}))
        replaced.start()
        with pytest.raises(ValueError, match="has changed"):
            cache.open(url, state)
        replaced.join()
        assert copies(cache) == []


def test_threads_that_want_the_same_shard_fetch_it_once(tmp_path):
    with serve(**{"0.tar": shard("a")}) as files:
        files.delay = 0.2
        url = RemoteUrl(f"{files.url}/0.tar")
        with ThreadPoolExecutor(4) as pool:
            for descriptor in pool.map(lambda _: cache_in(tmp_path).open(url, state_of(url, QUICK)), range(4)):
                os.close(descriptor)
        assert files.downloads("/0.tar") == 1


def open_shards(cache, urls):
    return [cache.open(url, state_of(url, QUICK)) for url in urls]


def test_least_recently_used_copies_make_room(tmp_path, memory):
    for n in range(4):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    urls = expand_urls("memory://d/{0..3}.tar")
    cache = cache_in(tmp_path, limit=3 * SIZE)
    for url in [urls[0], urls[1], urls[2], urls[0], urls[3]]:
        os.close(*open_shards(cache, [url]))
        time.sleep(0.01)
    held = {path.read_bytes()[:1] for path in copies(cache)}
    assert held == {b"0", b"2", b"3"}
    assert sum(path.stat().st_size for path in copies(cache)) <= cache.limit


def test_open_copies_are_never_removed(tmp_path, memory, caplog):
    for n in range(4):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    urls = expand_urls("memory://d/{0..3}.tar")
    cache = cache_in(tmp_path, limit=2 * SIZE)
    fetched = open_shards(cache, urls[:3])
    descriptors = open_shards(cache, urls[:3])  # these find the copies there
    for descriptor in fetched:
        os.close(descriptor)
    assert len(copies(cache)) == 3
    assert f"need {SIZE} bytes more than data.cache_bytes={2 * SIZE}" in caplog.text
    os.close(descriptors.pop(1))
    open_shards(cache, urls[3:])
    assert {path.read_bytes()[:1] for path in copies(cache)} == {b"0", b"2", b"3"}


def test_reader_closes_copies_to_stay_within_the_limit(tmp_path, memory, caplog):
    for n in range(6):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    cache = cache_in(tmp_path, limit=3 * SIZE)
    reader = reader_of("memory://d/{0..5}.tar", cache)
    assert texts_of(reader) == [str(n).encode() for n in range(6)]
    assert sum(path.stat().st_size for path in copies(cache)) <= cache.limit
    assert "data.cache_bytes" not in caplog.text


def test_shortened_copy_is_fetched_again(tmp_path, memory):
    memory.pipe_file("/d/0.tar", shard("a"))
    cache = cache_in(tmp_path)
    url = RemoteUrl("memory://d/0.tar")
    os.close(*open_shards(cache, [url]))
    os.truncate(copies(cache)[0], 100)
    os.close(*open_shards(cache, [url]))
    assert copies(cache)[0].read_bytes() == shard("a")


def test_shards_of_equal_name_do_not_share_a_copy(tmp_path, memory):
    memory.pipe_file("/x/0.tar", shard("a"))
    memory.pipe_file("/y/0.tar", shard("b"))
    reader = reader_of(["memory://x/0.tar", "memory://y/0.tar"], cache_in(tmp_path))
    assert texts_of(reader) == [b"a", b"b"]


def test_shards_are_fetched_ahead(tmp_path):
    with serve(**{f"{n}.tar": shard(str(n)) for n in range(4)}) as files:
        (tmp_path / "t.tar").write_bytes(shard("0"))
        for n in range(4):
            (tmp_path / "t.tar").write_bytes(shard(str(n)))
            ShardIndex.open(tmp_path / "t.tar")
            files.contents[f"/{n}.tar.idx"] = index_path(tmp_path / "t.tar").read_bytes()
        cache = cache_in(tmp_path)
        reader = reader_of(files.url + "/{0..3}.tar", cache)
        reader.will_need([2, 1])
        while len(copies(cache)) < 2:
            time.sleep(0.01)
        assert [path for method, path in files.requests if method == "GET" and path.endswith(".tar")] == [
            "/2.tar",
            "/1.tar",
        ]
        assert reader.read(2, 0) == {"txt": b"2"}
        assert files.downloads("/2.tar") == 1
        reader.close()


def test_fetching_ahead_leaves_room(tmp_path, memory):
    for n in range(6):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    cache = cache_in(tmp_path, limit=4 * SIZE)
    urls = expand_urls("memory://d/{0..5}.tar")
    held = [cache.open(url, state_of(url, QUICK), ahead=True) for url in urls]
    assert [descriptor is None for descriptor in held] == [False, False, False, True, True, True]


def test_prefetch_that_fails_is_raised_where_the_shard_is_read(tmp_path, memory):
    for n in range(2):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    cache = cache_in(tmp_path)
    reader = reader_of("memory://d/{0..1}.tar", cache)
    for path in copies(cache):
        path.unlink()
    memory.rm_file("/d/1.tar")
    reader.will_need([1, 0])
    assert reader.read(0, 0) == {"txt": b"0"}
    with pytest.raises(Unreachable, match=r"there is no file memory://d/1\.tar"):
        reader.read(1, 0)


def test_directory_that_cannot_be_written_is_named(tmp_path, memory):
    memory.pipe_file("/d/0.tar", shard("a"))
    (tmp_path / "cache").touch()
    with pytest.raises(Unreachable, match=rf"{tmp_path}/cache cannot be written.*data\.cache_dir"):
        reader_of("memory://d/0.tar", cache_in(tmp_path))


def test_nothing_secret_is_written_or_shown(tmp_path, caplog):
    with serve(**{"0.tar": shard("a")}) as files:
        host = files.url.removeprefix("http://")
        texts_of(reader_of(f"http://user:CANARY1@{host}/0.tar?X-Amz-Signature=CANARY2", cache_in(tmp_path)))
    written = [path.name.encode() + path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"CANARY" in data for data in written)
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a@b/0.tar", "s3://bucket/a@b/0.tar"),
        ("https://u:p@ss@host:1/0.tar?sig=x#y", "https://host:1/0.tar"),
        ("403, url='https://h/0.tar?sig=x'", "403, url='https://h/0.tar'"),
        ("GET /0.tar?sig=x", "GET /0.tar?…"),
    ],
)
def test_urls_are_shown_without_passwords_and_queries(text, expected):
    assert without_secrets(text, "https://h/0.tar?sig=x") == expected


def test_saved_header_of_a_remote_index_names_no_place(tmp_path, memory):
    memory.pipe_file("/d/0.tar", shard("a"))
    cache = cache_in(tmp_path)
    reader_of("memory://d/0.tar", cache)
    header = json.loads(next(cache.directory.glob("*.idx")).read_bytes().partition(b"\n")[0])
    assert header["samples"] == 1
    assert header["shard_size"] == SIZE
    assert "memory" not in json.dumps(header)


@pytest.fixture
def counted(tmp_path, memory, monkeypatch):
    """Forty shards in one directory, with indexes, and the calls that are made of their file system."""
    for n in range(40):
        memory.pipe_file(f"/d/{n}.tar", shard(str(n)))
    calls: Counter[str] = Counter()
    info, ls = MemoryFileSystem.info, MemoryFileSystem.ls

    def counted_info(self, path, **options):
        calls["info"] += 1
        return {**info(self, path, **options), "ETag": f'"{path}"'}

    def counted_ls(self, path, detail=True, **options):
        calls["ls"] += 1
        return [{**found, "ETag": f'"{found["name"]}"'} for found in ls(self, path, detail=detail, **options)]

    monkeypatch.setattr(MemoryFileSystem, "info", counted_info)
    monkeypatch.setattr(MemoryFileSystem, "ls", counted_ls)
    index_sources(["memory://d/*.tar"], IndexJob(cache=cache_in(tmp_path / "indexing")), processes=1)
    calls.clear()
    return calls


def test_shards_of_one_directory_are_listed_by_one_call(counted, tmp_path, memory):
    for n in range(3):
        memory.pipe_file(f"/few/{n}.tar", shard("few"))
    reader = reader_of(["memory://d/{0..39}.tar", "memory://few/{0..2}.tar"], cache_in(tmp_path))
    assert (counted["ls"], reader.counts) == (1, [1] * 43)
    # One to compare the listing with, and three for each of the few, which are fetched since they have no index.
    assert counted["info"] == 1 + 3 * 3
    assert reader.read(5, 0) == {"txt": b"5"}  # its copy is known by the state that was listed


@pytest.mark.parametrize("fault", ["denied", "other etags"])
def test_shards_that_cannot_be_listed_are_asked_for_one_by_one(counted, tmp_path, monkeypatch, fault):
    listed = MemoryFileSystem.ls

    def ls(self, path, detail=True, **options):
        if fault == "denied":
            raise PermissionError
        return [{**info, "ETag": "other"} for info in listed(self, path, detail=detail, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    reader = reader_of("memory://d/{0..39}.tar", cache_in(tmp_path))
    assert 40 <= counted["info"] <= 41
    assert reader.read(5, 0) == {"txt": b"5"}


@pytest.mark.usefixtures("counted")
def test_shard_that_a_listing_lacks_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file memory://d/40\.tar"):
        reader_of("memory://d/{0..40}.tar", cache_in(tmp_path))


def test_local_shards_need_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "0.tar").write_bytes(shard("a"))
    reader = ShardReader([tmp_path / "0.tar"])
    assert reader.read(0, 0) == {"txt": b"a"}
    reader.close()
    assert not (tmp_path / "cache").exists()

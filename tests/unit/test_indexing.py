"""`altclip data index`: what it builds, skips, refuses, reports and exits with."""

import hashlib
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from altclip_train.cli import main
from altclip_train.data.dataset import PairDataset
from altclip_train.data.index import ShardState, index_path, saved_header
from altclip_train.data.indexing import IndexJob, index_sources
from altclip_train.data.parts import part_of_work
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import expand_urls
from tests.pair_datasets import text_decoder
from tests.servers import serve
from tests.unit.test_remote import cache_in, shard


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def shards(tmp_path):
    """Three sound shards."""
    for n in range(3):
        (tmp_path / f"{n}.tar").write_bytes(shard(f"a{n}", f"b{n}", f"c{n}"))
    return tmp_path


def index(*arguments):
    """Exit status of the command."""
    try:
        main(["data", "index", "--processes", "1", *map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def damage(path):
    data = bytearray(path.read_bytes())
    data[1024] ^= 1  # the header of the second member
    path.write_bytes(data)


def test_indexes_are_built_once(shards, capsys):
    assert index(f"{shards}/*.tar") == 0
    assert "3 shards, 9 samples, 0.0 MB, fields txt, 0 problems; 3 indexed now, 0 before" in capsys.readouterr().out
    assert all(saved_header(index_path(path), ShardState.of(path)) for path in shards.glob("*.tar"))
    assert index(f"{shards}/*.tar") == 0
    assert "0 indexed now, 3 before" in capsys.readouterr().out


def test_stale_index_of_a_local_shard_is_rebuilt(shards, capsys):
    index(f"{shards}/*.tar")
    (shards / "0.tar").write_bytes(shard("x"))
    index(f"{shards}/*.tar")
    assert "7 samples" in (out := capsys.readouterr().out.splitlines()[-1])
    assert "1 indexed now, 2 before" in out


def test_several_processes_report_in_order(shards, capsys):
    index("--processes", 2, f"{shards}/2.tar", f"{shards}/0.tar")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{shards}/2.tar",
        f"{shards}/0.tar",
    ]


def test_every_damaged_range_is_reported_and_ends_with_1(shards, capsys):
    damage(shards / "1.tar")
    assert index(f"{shards}/*.tar") == 1
    first = capsys.readouterr().out
    assert f"{shards}/1.tar: no tar header at byte 1024: lost what lies up to byte 2048" in first
    assert "8 samples" in first
    assert index(f"{shards}/*.tar") == 1  # from the index that is there
    assert index("--allow-damaged", f"{shards}/*.tar") == 0


def test_file_that_is_no_shard_is_an_error_in_any_case(shards, capsys):
    (shards / "1.tar").write_bytes(b"<html>" * 200)
    assert index("--allow-damaged", f"{shards}/*.tar") == 1
    out = capsys.readouterr().out
    assert f"{shards}/1.tar is not a readable tar file" in out
    assert "6 samples" in out


def test_manifest_says_what_each_shard_holds(shards, tmp_path):
    damage(shards / "1.tar")
    index("--manifest", tmp_path / "m.json", f"{shards}/*.tar")
    entries = json.loads((tmp_path / "m.json").read_text())["shards"]
    assert [entry["shard"] for entry in entries] == [f"{shards}/{n}.tar" for n in range(3)]
    assert [entry["samples"] for entry in entries] == [3, 2, 3]
    assert [len(entry["problems"]) for entry in entries] == [0, 1, 0]
    content = (shards / "2.tar").read_bytes()
    assert entries[2]["sha256"] == hashlib.sha256(content).hexdigest()
    assert entries[2]["bytes"] == len(content)


def test_parts_cover_all_shards_once(shards, tmp_path):
    for own in range(2):
        index("--part", f"{own}/2", "--manifest", tmp_path / "m.json", f"{shards}/*.tar")
    names = [json.loads((tmp_path / f"m.{own}-of-2.json").read_text())["shards"] for own in range(2)]
    assert sorted(entry["shard"] for part in names for entry in part) == [f"{shards}/{n}.tar" for n in range(3)]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "9"}, (4, 9)),
    ],
)
def test_part_comes_from_the_launcher(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert part_of_work() == expected
    assert part_of_work("1/2") == (1, 2)


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b"])
def test_impossible_parts_are_refused(text):
    with pytest.raises(ValueError, match="0/"):
        part_of_work(text)


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def test_remote_index_is_written_beside_its_shard_and_used(tmp_path, memory, capsys, caplog):
    memory.pipe_file("/d/0.tar", shard("a", "b"))
    assert index("--cache-dir", tmp_path / "cache", "memory://d/0.tar") == 0
    assert memory.exists("/d/0.tar.idx")
    assert "1 indexed now, 0 before" in capsys.readouterr().out
    index("--cache-dir", tmp_path / "other", "memory://d/0.tar")
    assert "0 indexed now, 1 before" in capsys.readouterr().out
    assert not list(tmp_path.glob("other/*.tar"))
    assert ShardReader(expand_urls("memory://d/*.tar"), cache=cache_in(tmp_path / "third")).counts == [2]
    assert caplog.text == ""


def test_stale_remote_index_is_refused_unless_it_is_to_be_rebuilt(tmp_path, memory, capsys):
    memory.pipe_file("/d/0.tar", shard("a", "b"))
    index("--cache-dir", tmp_path, "memory://d/0.tar")
    memory.pipe_file("/d/0.tar", shard("c"))
    capsys.readouterr()
    assert index("--cache-dir", tmp_path, "memory://d/0.tar") == 1
    assert "0.tar.idx is stale" in capsys.readouterr().out
    assert index("--cache-dir", tmp_path, "--rebuild", "memory://d/0.tar") == 0
    assert index("--cache-dir", tmp_path, "memory://d/0.tar") == 0


def test_index_stays_in_the_cache_where_nothing_can_be_written(tmp_path, capsys):
    with serve(**{"0.tar": shard("a")}) as files:
        assert index("--cache-dir", tmp_path, f"{files.url}/0.tar?sig=CANARY") == 0
        assert {method for method, _ in files.requests} == {"HEAD", "GET"}
    out = capsys.readouterr().out
    assert "1 indexes could not be written beside their shards" in out
    assert "CANARY" not in out
    assert list(tmp_path.glob("*.idx"))


def test_shard_that_cannot_be_reached_does_not_hide_the_others(shards, capsys):
    with serve() as files:
        assert index(f"{files.url}/0.tar", f"{shards}/0.tar") == 1
    out = capsys.readouterr().out
    assert f"there is no file {files.url}/0.tar" in out
    assert "3 samples" in out


def text_pairs(source, cache):
    return PairDataset(sources=[source], plan_seed=0, decoder=text_decoder(), cache=cache)


def counting_calls(monkeypatch):
    """Names of the calls to the memory file system from now on."""
    calls = []
    for name in ("info", "ls", "cat_file", "open", "glob"):
        original = getattr(MemoryFileSystem, name)
        monkeypatch.setattr(
            MemoryFileSystem,
            name,
            lambda self, *args, _name=name, _original=original, **kwargs: (
                calls.append(_name) or _original(self, *args, **kwargs)
            ),
        )
    return calls


@pytest.mark.parametrize("place", ["{tmp}/m.json", "memory://d/m.json", "{tmp}/m.*-of-2.json"])
def test_manifest_of_remote_shards_answers_for_them(tmp_path, memory, monkeypatch, place):
    for n in range(20):
        memory.pipe_file(f"/d/{n}.tar", text_shard(n))
    urls = "memory://d/{0..19}.tar"
    for part in ("0/2", "1/2") if "of-2" in place else ("0/1",):
        index("--cache-dir", tmp_path / "a", "--part", part, "--manifest", tmp_path / "m.json", urls)
    if place.startswith("memory"):
        memory.pipe_file("/d/m.json", (tmp_path / "m.json").read_bytes())
    expected = text_pairs({"urls": urls}, cache=cache_in(tmp_path / "b"))
    calls = counting_calls(monkeypatch)
    source = {"urls": urls, "manifest": place.format(tmp=tmp_path)}
    dataset = text_pairs(source, cache=cache_in(tmp_path / "c"))
    assert calls == (["cat_file"] if place.startswith("memory") else [])
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.__getitems__(range(20)).keys == expected.__getitems__(range(20)).keys


def test_shard_that_a_manifest_does_not_list_is_asked_for(tmp_path, memory, caplog):
    for n in range(3):
        memory.pipe_file(f"/d/{n}.tar", text_shard(n))
    index("--cache-dir", tmp_path / "a", "--manifest", tmp_path / "m.json", "memory://d/{0..1}.tar")
    source = {"urls": "memory://d/{0..2}.tar", "manifest": tmp_path / "m.json"}
    assert len(text_pairs(source, cache=cache_in(tmp_path))) == 3
    assert "the manifest lists 2 of 3 shards, and not memory://d/2.tar" in caplog.text


def test_shard_that_changed_since_its_manifest_is_refused_when_it_is_fetched(tmp_path, memory):
    memory.pipe_file("/d/0.tar", text_shard(0))
    index("--cache-dir", tmp_path / "a", "--manifest", tmp_path / "m.json", "memory://d/0.tar")
    memory.pipe_file("/d/0.tar", text_shard(0) + bytes(10240))
    dataset = text_pairs({"urls": "memory://d/0.tar", "manifest": tmp_path / "m.json"}, cache=cache_in(tmp_path))
    with pytest.raises(ValueError, match=r"0\.tar has changed .*since its manifest was written: it had 10240 bytes"):
        dataset.__getitems__([0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "KeyError: 'format'"),
        ("[", "JSONDecodeError"),
        ('{"format": 1, "shards": []}', "format 1, expected 2"),
        ('{"format": 2, "shards": [{"shard": "a.tar", "error": "no tar"}]}', "a.tar could not be indexed: no tar"),
    ],
)
def test_file_that_is_no_manifest_is_refused(tmp_path, memory, content, message):
    memory.pipe_file("/d/0.tar", text_shard(0))
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ValueError, match=rf"m\.json is no manifest that can be used .*{message}.*--manifest FILE"):
        text_pairs({"urls": "memory://d/0.tar", "manifest": tmp_path / "m.json"}, cache=cache_in(tmp_path))


def text_shard(number):
    """A shard with one entry of parallel text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for language in ("en", "zh"):
            text = f"{language} {number}".encode()
            info = tarfile.TarInfo(f"{number:03d}.{language}.txt")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    return buffer.getvalue()


def test_the_same_shards_may_be_indexed_by_several_at_once(shards, tmp_path):
    job = IndexJob(cache=cache_in(tmp_path), rebuild=True)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(index_sources, [f"{shards}/*.tar"], job, processes=1) for _ in range(4)]
    reports = [run.result() for run in runs]
    assert all(report == reports[0] for report in reports)
    assert [shard.samples for shard in reports[0][0].shards] == [3, 3, 3]
    assert sorted(path.name for path in shards.glob("*.tar*")) == [
        f"{n}.tar{end}" for n in range(3) for end in ("", ".idx")
    ]
    assert not list(shards.glob(".*.tmp-*"))
    assert all(saved_header(index_path(path), ShardState.of(path)) for path in shards.glob("*.tar"))

"""Shards: which files a url names, what the index finds in sound and damaged tars, and reading by offset."""

import io
import multiprocessing
import os
import pickle
import tarfile

import pytest

from altclip_train.data.index import ShardIndex, index_path
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import expand_urls

ENTRIES = [("a.jpg", b"picture"), ("a.json", b"{}"), ("d/b.en.txt", b"two"), ("d/b.zh.txt", "二".encode())]


def write_tar(path, entries, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples_of(path):
    """Every sample of a shard as (key, fields), read through index and reader."""
    reader = ShardReader([path])
    return [(reader.key(0, i), reader.read(0, i)) for i in range(reader.counts[0])]


def numbered(count, first=0):
    """Two members for each of ``count`` samples, of 1024 bytes in the tar each."""
    return [(f"{n:04d}.{ext}", f"{ext} {n}".encode()) for n in range(first, first + count) for ext in ("jpg", "txt")]


def test_reader_gives_the_bytes_of_each_field_by_key(tmp_path):
    path = write_tar(tmp_path / "0.tar", ENTRIES)
    assert samples_of(path) == [
        ("a", {"jpg": b"picture", "json": b"{}"}),
        ("d/b", {"en.txt": b"two", "zh.txt": "二".encode()}),
    ]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_reads_every_tar_format(tmp_path, tar_format):
    entries = [*ENTRIES, (f"{'long' * 20}/{'key' * 20}.txt", b"long"), ("画.txt", b"unicode")]
    path = write_tar(tmp_path / "0.tar", entries, format=tar_format)
    assert [key for key, _ in samples_of(path)] == ["a", "d/b", f"{'long' * 20}/{'key' * 20}", "画"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.v1.png"], [("a", ["v1.png"])]),  # the key ends at the first dot
        (["x.y/a.png"], [("x.y/a", ["png"])]),  # but dots of directories belong to it
        (["a.JPG", "a.Json"], [("a", ["jpg", "json"])]),
        (["noextension", ".hidden", "._a.jpg", "d/"], []),
        (["a.jpg", "b.jpg", "a.txt"], [("a", ["jpg"]), ("b", ["jpg"]), ("a", ["txt"])]),  # not adjacent
        (["a.jpg", "a.txt", "a.jpg"], [("a", ["jpg", "txt"]), ("a", ["jpg"])]),  # given twice
        (["d/a.jpg", "e/a.jpg"], [("d/a", ["jpg"]), ("e/a", ["jpg"])]),
    ],
)
def test_members_are_grouped_by_adjacent_key(tmp_path, names, expected):
    path = write_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    assert [(key, list(fields)) for key, fields in samples_of(path)] == expected


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg", "a.txt"], ["a.jpg", "a.jpg"]])
def test_repeated_keys_are_reported(tmp_path, names, caplog):
    path = write_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    ShardReader([path])
    assert "2 samples have the key 'a'" in caplog.text


def test_links_and_directories_are_no_members(tmp_path):
    path = write_tar(tmp_path / "0.tar", ENTRIES[:2])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        folder = tarfile.TarInfo("c.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert [key for key, _ in samples_of(path)] == ["a"]


def test_damaged_header_costs_only_its_own_member(tmp_path, caplog):
    path = write_tar(tmp_path / "0.tar", numbered(10))
    data = bytearray(path.read_bytes())
    data[7 * 1024 + 100] ^= 1  # header of the member 7, which is 0003.txt
    path.write_bytes(data)
    found = dict(samples_of(path))
    assert len(found) == 10
    assert list(found["0003"]) == ["jpg"]
    assert "no tar header at byte 7168: lost what lies up to byte 8192" in caplog.text


def test_reading_goes_on_right_after_a_damaged_header_without_data(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("a.txt", b""), ("b.txt", b""), ("c.txt", b"")])
    data = bytearray(path.read_bytes())
    data[512] ^= 1
    path.write_bytes(data)
    assert [key for key, _ in samples_of(path)] == ["a", "c"]


def test_damaged_first_header_costs_only_its_own_member(tmp_path):
    path = write_tar(tmp_path / "0.tar", numbered(3))
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    assert [list(fields) for _, fields in samples_of(path)] == [["txt"], ["jpg", "txt"], ["jpg", "txt"]]


@pytest.mark.parametrize(
    ("length", "members", "message"),
    [
        (8 * 1024, 8, "no end-of-archive blocks at byte 8192"),  # after a member
        (7 * 1024 + 512, 7, "cut off at byte 7680"),  # after a header
        (7 * 1024 + 515, 7, "cut off at byte 7683"),  # inside a member's data
        (7 * 1024 + 200, 7, "no tar header at byte 7168"),  # inside a header
    ],
)
def test_cut_off_shard_keeps_its_whole_members_and_says_so(tmp_path, caplog, length, members, message):
    path = write_tar(tmp_path / "0.tar", numbered(10))
    path.write_bytes(path.read_bytes()[:length])
    assert sum(len(fields) for _, fields in samples_of(path)) == members
    assert message in caplog.text


def test_zeros_where_a_download_stopped_are_reported(tmp_path, caplog):
    path = write_tar(tmp_path / "0.tar", numbered(2))
    path.write_bytes(path.read_bytes()[:2048] + bytes(3 << 20))
    assert len(samples_of(path)) == 1
    assert "bytes of zeros from byte 2048" in caplog.text


def test_sound_shards_have_no_problems(tmp_path, caplog):
    write_tar(tmp_path / "0.tar", numbered(10))
    write_tar(tmp_path / "1.tar", [])
    assert ShardReader([tmp_path / "0.tar", tmp_path / "1.tar"]).counts == [10, 0]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable tar file.*at byte 0"),
        (b"<!DOCTYPE html><title>404</title>" * 50, "not a readable tar file"),
        (b"\x1f\x8b\x08\0" + b"x" * 600, "compressed with gzip.*decompress"),
    ],
)
def test_files_that_are_no_tar_are_an_error_that_names_them(tmp_path, content, message):
    path = tmp_path / "broken.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken.tar.*{message}"):
        ShardIndex.open(path)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_saved_index_equals_the_built_one_and_is_reused(tmp_path, count):
    path = write_tar(tmp_path / "0.tar", ENTRIES[:count])
    built = ShardIndex.open(path)
    written = index_path(path).stat().st_mtime_ns
    loaded = ShardIndex.open(path)
    assert loaded.header() == built.header()
    for index in (built, loaded):
        assert [index.key(sample) for sample in range(len(index))] == ["a", "d/b"][: count // 2]
    assert [loaded.members(i) for i in range(len(loaded))] == [built.members(i) for i in range(len(built))]
    assert index_path(path).stat().st_mtime_ns == written
    assert os.listdir(tmp_path) == ["0.tar", "0.tar.idx"] or os.listdir(tmp_path) == ["0.tar.idx", "0.tar"]


def test_index_is_rebuilt_when_the_shard_has_changed(tmp_path):
    path = write_tar(tmp_path / "0.tar", numbered(3))
    ShardIndex.open(path)
    size = path.stat().st_size
    write_tar(path, numbered(3, first=5))
    assert path.stat().st_size == size
    assert ShardIndex.open(path).key(0) == "0005"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:-9] + b"x" * 9, lambda data: data[:0], bytes.upper]
)
def test_damaged_index_is_rebuilt(tmp_path, damage):
    path = write_tar(tmp_path / "0.tar", ENTRIES)
    ShardIndex.open(path)
    index_path(path).write_bytes(damage(index_path(path).read_bytes()))
    assert [key for key, _ in samples_of(path)] == ["a", "d/b"]
    assert ShardIndex.open(path).saved


def test_index_that_cannot_be_saved_is_kept_in_memory(tmp_path):
    path = write_tar(tmp_path / "0.tar", ENTRIES)
    index_path(path).mkdir()  # refuses to be replaced by a file, for every user
    reader = ShardReader([path])
    assert pickle.loads(pickle.dumps(reader)).read(0, 0)["jpg"] == b"picture"
    assert sorted(os.listdir(tmp_path)) == ["0.tar", "0.tar.idx"]


def _open_index(path):
    return ShardIndex.open(path).header()


def test_processes_that_build_one_index_at_once_agree(tmp_path):
    path = write_tar(tmp_path / "0.tar", numbered(300))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        headers = pool.map(_open_index, [path] * 8)
    assert all(header == headers[0] for header in headers)
    assert sorted(os.listdir(tmp_path)) == ["0.tar", "0.tar.idx"]


def test_reader_keeps_few_shards_open(tmp_path):
    paths = [write_tar(tmp_path / f"{n}.tar", numbered(2, first=10 * n)) for n in range(5)]
    before = len(os.listdir("/proc/self/fd"))
    reader = ShardReader(paths, max_open=2)
    keys = [reader.key(shard, sample) for _ in range(2) for shard in range(5) for sample in range(2)]
    assert keys == [f"{10 * n + sample:04d}" for n in range(5) for sample in range(2)] * 2
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def test_reader_reads_only_wanted_fields(tmp_path):
    path = write_tar(tmp_path / "0.tar", ENTRIES)
    reader = ShardReader([path], wanted=lambda field: field.endswith("txt"))
    assert reader.read(0, 0) == {}
    assert list(reader.read(0, 1)) == ["en.txt", "zh.txt"]


def test_reader_refuses_a_shard_that_changes_under_it(tmp_path):
    path = write_tar(tmp_path / "0.tar", numbered(3))
    reader = ShardReader([path])
    write_tar(path, numbered(4))
    with pytest.raises(ValueError, match=r"0\.tar has changed"):
        reader.read(0, 0)


def test_reader_says_when_bytes_are_missing(tmp_path):
    path = write_tar(tmp_path / "0.tar", ENTRIES)
    reader = ShardReader([path])
    reader.read(0, 0)
    os.truncate(path, 515)
    with pytest.raises(OSError, match=r"only 3 of 7 bytes of a\.jpg"):
        reader.read(0, 0)


def test_fingerprint_depends_on_contents_and_not_on_place(tmp_path):
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
    paths = [write_tar(tmp_path / name / "0.tar", ENTRIES[: 4 - 2 * (name == "z")]) for name in ("x", "y", "z")]
    first, same, other = (ShardReader([path]).fingerprint for path in paths)
    assert first == same != other


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("*.tar", ["0.tar", "1.tar", "2.tar", "[x].tar"]),
        (["2.tar", "{0,1}.tar"], ["2.tar", "0.tar", "1.tar"]),
        ("[01].tar", ["0.tar", "1.tar"]),
        ("[x].tar", ["[x].tar"]),  # a file's own name comes before its reading as a pattern
        ("", ["0.tar", "1.tar", "2.tar", "[x].tar"]),  # the directory
        ("[01]*", ["0.tar", "1.tar"]),  # not the index beside 0.tar
    ],
)
def test_urls_expand_to_paths_in_order(tmp_path, urls, expected):
    for name in ("0.tar", "1.tar", "2.tar", "[x].tar", "0.tar.idx", "notes.txt"):
        (tmp_path / name).touch()
    patterns = [urls] if isinstance(urls, str) else urls
    found = expand_urls([f"{tmp_path}/{pattern}" for pattern in patterns])
    assert [str(path.relative_to(tmp_path)) for path in found] == expected


@pytest.mark.parametrize(
    ("urls", "pattern", "there"),
    [
        ("{0..1}.tar", "1.tar", "0.tar, sub/"),
        ("x*.tar", "x*.tar", "0.tar, sub/"),
        ("sub/*.tar", "sub/*.tar", "nothing"),
        ("sub", "sub/*.tar", "nothing"),
        ("typo/deep/0.tar", "typo/deep/0.tar", "0.tar, sub/"),
    ],
)
def test_urls_that_name_nothing_say_what_is_there(tmp_path, urls, pattern, there):
    (tmp_path / "0.tar").touch()
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        expand_urls(f"{tmp_path}/{urls}")
    assert f"no shard matches '{tmp_path}/{pattern}'" in str(error.value)
    assert str(error.value).endswith(f"holds {there}")


@pytest.mark.parametrize("url", ["pipe:touch {marker}", "pipe: cat x.tar"])
def test_pipe_urls_are_refused_and_not_run(tmp_path, url):
    marker = tmp_path / "ran"
    with pytest.raises(ValueError, match="pipe"):
        expand_urls(url.format(marker=marker))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/{0..1}.tar", ["s3://bucket/0.tar", "s3://bucket/1.tar"]),
        ("{s3,gs}://b/0.tar", ["s3://b/0.tar", "gs://b/0.tar"]),
        ("https://user:secret@host/{0..1}.tar?sig=*[1]", ["https://host/0.tar", "https://host/1.tar"]),
    ],
)
def test_remote_urls_are_expanded_without_a_network_and_shown_without_secrets(url, expected):
    assert [str(shard) for shard in expand_urls(url)] == expected


def test_shard_named_twice_is_refused(tmp_path):
    (tmp_path / "0.tar").touch()
    with pytest.raises(ValueError, match=r"more than once.*0\.tar.*weight"):
        expand_urls([f"{tmp_path}/*.tar", f"{tmp_path}/0.tar"])

"""Shards as an endless stream: what is read, how it is drawn, and what becomes of damage and of commands."""

import os
import tarfile
from collections import Counter
from itertools import combinations, islice
from pathlib import Path
from random import Random

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader

from altclip_train.data import streaming
from altclip_train.data.cache import ShardCache
from altclip_train.data.remote import Patience
from altclip_train.data.sampler import already_a_batch
from altclip_train.data.streaming import PipeUrl, StreamedPairs
from tests.pair_datasets import image_decoder, image_texts, png, text_decoder, text_pairs, write_tar


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER", 16)


def stream(*sources, decoder=None, seed=0, batch_size=4, **arguments):
    return StreamedPairs(
        sources=list(sources), seed=seed, decoder=decoder or text_decoder(), batch_size=batch_size, **arguments
    )


def pairs(first, count):
    return [(f"{n:03d}", {"json": {"en": f"en {n}", "zh": f"甲 {n}"}}) for n in range(first, first + count)]


@pytest.fixture
def shards(tmp_path):
    """Three shards of twenty entries each."""
    return [write_tar(tmp_path / f"{n}.tar", pairs(20 * n, 20)) for n in range(3)]


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


def skipped_of(dataset, batches=20):
    return [skipped for batch in islice(dataset, batches) for skipped in batch.skipped]


def test_records_equal_those_of_the_indexed_reader(shards):
    streamed = {record.key: record for record in islice(stream({"urls": shards}).records(Random(0), []), 1000)}
    (indexed, _) = text_pairs({"urls": shards}).records(range(60))
    assert streamed == {record.key: record for record in indexed}


def test_pictures_equal_those_of_the_indexed_reader(tmp_path):
    samples = [(f"{n}", {"png": png((n, 2 * n, 3)), "en.txt": f"a {n}", "cls": "7"}) for n in range(10)]
    shard = write_tar(tmp_path / "0.tar", samples)
    streamed = {r.key: r for r in islice(stream(shard, decoder=image_decoder()).records(Random(0), []), 200)}
    (indexed, _) = image_texts(shard).records(range(10))
    assert streamed.keys() == {record.key for record in indexed}
    for record in indexed:
        assert streamed[record.key][:3] == record[:3]
        assert np.array_equal(streamed[record.key].pixels, record.pixels)


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path):
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander

    fields = {"en.txt": "a", "ZH.TXT": "甲", "json": {"en": "b"}}
    samples = [("a/1", fields), ("a/2", fields), ("b/2", fields), ("2", fields), ("2 3", fields)]
    shard = write_tar(tmp_path / "0.tar", samples)
    with gopen(shard) as file:
        theirs = list(group_by_keys(tar_file_expander([{"url": shard, "stream": file}])))
    expected = [(s["__key__"], {name: data for name, data in s.items() if name[:2] != "__"}) for s in theirs]
    with open(shard, "rb") as file:
        ours = [(key, members) for key, members, _ in streaming._read_tar(file, text_decoder())]
    assert ours == expected
    assert len(ours) == 5


def test_field_that_a_key_has_twice_begins_a_new_sample_as_in_an_index(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [("a", {"json": {"en": f"{n}", "zh": "甲"}}) for n in range(3)])
    streamed = set(islice(stream(shard).records(Random(0), []), 100))
    (indexed, _) = text_pairs(shard).records(range(3))
    assert streamed == set(indexed)
    assert len(streamed) == 3


def test_batches_have_their_size_and_never_end(tmp_path):
    shard = write_tar(tmp_path / "0.tar", pairs(0, 3))
    batches = list(islice(stream(shard, batch_size=5), 40))
    assert {len(batch.keys) for batch in batches} == {5}
    assert set(keys_of(batches)) == {"000", "001", "002"}


def test_every_rank_and_loader_process_draws_otherwise_and_reproducibly(shards):
    def drawn(rank, seed=0, begin=0):
        dataset = stream({"urls": shards}, rank=rank, seed=seed)
        dataset.seek(begin)
        loader = DataLoader(
            dataset, batch_size=None, collate_fn=already_a_batch, num_workers=2, multiprocessing_context="fork"
        )
        batches = [batch.keys for batch in islice(loader, 12)]  # the processes take turns
        return tuple(map(tuple, batches[::2])), tuple(map(tuple, batches[1::2]))

    variants = [*drawn(0), *drawn(1), *drawn(0, seed=1), *drawn(0, begin=400)]
    assert all(one != other for one, other in combinations(variants, 2))
    assert drawn(1) == tuple(variants[2:4])


def test_sources_are_drawn_by_weight_with_replacement(shards):
    sources = [{"urls": shards[0], "weight": 1}, {"urls": shards[1], "weight": 3}]
    keys = keys_of(islice(stream(*sources), 500))
    # Of 2000 draws, 1500 are expected with a standard deviation of 19.4; the buffer holds 16 that are not seen.
    assert abs(sum(int(key) >= 20 for key in keys) - 1500) < 5 * 19.4 + 16
    by_shards = keys_of(islice(stream(shards[0], {"urls": shards[1:]}), 500))
    assert abs(sum(int(key) >= 20 for key in by_shards) - 2000 * 2 / 3) < 5 * 21.1 + 16


def test_shards_are_drawn_evenly_with_replacement(shards):
    counts = Counter(int(key) // 20 for key in keys_of(islice(stream({"urls": shards}), 600)))
    # 120 visits of shards, each of 20 samples: 40 expected of each shard with a standard deviation of 5.2.
    assert all(abs(counts[shard] / 20 - 40) < 5 * 5.2 for shard in range(3))


def cut_in_a_member(path):
    os.truncate(path, 10 * 1024 + 512 + 5)


def cut_between_members(path):
    os.truncate(path, 10 * 1024)


def flip_a_header(path):
    with open(path, "r+b") as file:
        file.seek(10 * 1024)
        file.write(b"\xff")


@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (cut_in_a_member, "unexpected end of data"),
        (cut_between_members, "no tar header at byte 10240: empty header"),
        (flip_a_header, "no tar header at byte 10240: bad checksum"),
    ],
)
def test_damage_that_ends_a_shard_is_counted_and_what_lies_before_is_used(shards, damage, detail):
    damage(shards[0])
    dataset = stream({"urls": shards})
    batches = list(islice(dataset, 200))
    damaged = [s for batch in batches for s in batch.skipped if s.reason == "shard_damaged"]
    assert damaged
    assert {(s.shard, s.key, s.detail) for s in damaged} == {(shards[0], "", f"the rest of it is lost: {detail}")}
    assert set(keys_of(batches)) == {f"{n:03d}" for n in [*range(10), *range(20, 60)]}
    assert len(damaged) == pytest.approx(keys_of(batches).count("005"), abs=3)  # once for each visit


def test_shard_that_is_no_tar_or_not_there_is_counted(shards):
    Path(shards[0]).write_bytes(b"<html>" * 500)
    dataset = stream({"urls": shards})
    Path(shards[1]).unlink()
    reasons = {skipped.shard: skipped.reason for skipped in skipped_of(dataset, 100)}
    assert reasons == {shards[0]: "shard_damaged", shards[1]: "shard_unreadable"}


def test_compressed_shard_is_read(tmp_path, shards):
    import gzip

    packed = tmp_path / "0.tar.gz"
    packed.write_bytes(gzip.compress(Path(shards[0]).read_bytes()))
    assert set(keys_of(islice(stream(packed), 30))) == {f"{n:03d}" for n in range(20)}
    packed.write_bytes(packed.read_bytes()[:-200])
    assert {skipped.reason for skipped in skipped_of(stream({"urls": [packed, shards[1]]}))} == {"shard_damaged"}


def test_bad_samples_are_named_in_the_next_batch(tmp_path):
    samples = [*pairs(0, 9), ("bad", {"json": "{"}), ("bare", {"cls": "1"})]
    shard = write_tar(tmp_path / "0.tar", samples)
    batches = list(islice(stream(shard), 100))
    counts = Counter((skipped.reason, skipped.shard, skipped.key) for batch in batches for skipped in batch.skipped)
    assert counts.keys() == {("caption_json", shard, "bad"), ("caption_missing", shard, "bare")}
    assert all(count == pytest.approx(keys_of(batches).count("005"), abs=5) for count in counts.values())


def test_member_of_too_many_bytes_is_skipped_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_MEMBER_BYTES", 100)
    shard = write_tar(tmp_path / "0.tar", [*pairs(0, 9), ("big", {"json": {"en": "a" * 100, "zh": "甲"}})])
    (found,) = set(skipped_of(stream(shard)))
    assert (found.reason, found.key) == ("member_bytes", "big")
    assert found.detail.endswith("limit 100")


def test_source_without_any_good_sample_or_shard_is_an_error(tmp_path):
    empty = write_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match="21 shards in a row hold nothing that can be used"):
        next(iter(stream(empty)))
    bad = write_tar(tmp_path / "1.tar", [(f"{n}", {"json": {"en": "a"}}) for n in range(5)])
    with pytest.raises(ValueError, match=r"1001 samples in a row .*1\.tar \(language_missing: languages: en\): mend"):
        next(iter(stream(bad)))


def test_commands_are_refused_unless_allowed(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"are refused.*data\.mode=streaming and data\.allow_pipe=true"):
        stream(f"pipe:touch {marker}")
    assert not marker.exists()
    with pytest.raises(ValueError, match=r"shards in a row .* pipe:touch \S+ \(shard_damaged: "):
        next(iter(stream(f"pipe:touch {marker}", allow_pipe=True)))
    assert marker.exists()


def test_output_of_commands_equals_the_shards_that_they_print(shards):
    directory = Path(shards[0]).parent
    dataset = stream(f"pipe:cat {directory}/{{0..2}}.tar", allow_pipe=True)
    records = {record.key: record for record in islice(dataset.records(Random(0), []), 1000)}
    (indexed, _) = text_pairs({"urls": shards}).records(range(60))
    assert records == {record.key: record for record in indexed}


@pytest.mark.parametrize("command", ["cat {0}; exit 3", "head -c 10757 {0}; exit 3"])
def test_command_that_fails_is_counted_with_its_status(shards, command):
    pipe = "pipe:" + command.format(shards[0])
    dataset = stream({"urls": [pipe, shards[1]]}, allow_pipe=True)
    assert {(s.reason, s.detail) for s in skipped_of(dataset)} == {
        ("shard_unreadable", "its command ended with status 3")
    }


def test_command_does_not_outlive_its_stream(tmp_path, shards):
    pipe = f"pipe:echo $$ > {tmp_path}/pid; cat {shards[0]} {shards[1]}; sleep 1000"
    streamed = stream(pipe, allow_pipe=True)._samples(0, Random(0))
    next(streamed)
    streamed.close()
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_remote_shards_are_read_from_their_copies(tmp_path, shards):
    files = fsspec.filesystem("memory")
    for n, shard in enumerate(shards):
        files.pipe_file(f"/streamed/{n}.tar", Path(shard).read_bytes())
    files.rm("/streamed/2.tar")
    cache = ShardCache(tmp_path / "cache", patience=Patience(attempts=1))
    batches = list(islice(stream("memory://streamed/{0..2}.tar", cache=cache), 60))
    assert set(keys_of(batches)) == {f"{n:03d}" for n in range(40)}
    missing = {(s.reason, s.shard) for batch in batches for s in batch.skipped}
    assert missing == {("shard_unreadable", "memory://streamed/2.tar")}
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_text_of_a_command_holds_no_secrets():
    text = str(PipeUrl("curl -s https://user:word@host/a.tar?X-Amz-Signature=abc"))
    assert text == "pipe:curl -s https://host/a.tar"


def test_environment_variables_of_webdataset_change_nothing(shards, monkeypatch):
    expected = keys_of(islice(stream({"urls": shards}), 30))
    rewrite = f"{shards[0]}={shards[1]}"
    for name, value in {"GOPEN_REWRITE": rewrite, "WDS_SECURE": "1", "WDS_SEED": "5", "GOPEN_BUFFER": "x"}.items():
        monkeypatch.setenv(name, value)
    assert keys_of(islice(stream({"urls": shards}), 30)) == expected


def test_hostile_headers_do_not_write_files(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("../out.json", tarfile.SYMTYPE), ("/etc.json", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    with path.open("rb") as file:
        assert list(streaming._read_tar(file, text_decoder())) == []

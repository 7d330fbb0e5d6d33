"""What stands in the place of a sample that cannot be used."""

import pytest
from torch.utils.data import DataLoader

from altclip_train.data import shards as shards_module
from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch
from tests.pair_datasets import (
    image_texts,
    parallel_texts,
    png,
    text_pairs,
    texts_of,
    write_tar,
)


@pytest.fixture
def parallel(tmp_path):
    return parallel_texts(tmp_path)


def shard_with_damage(tmp_path, damaged, size, name="0.tar"):
    """Pictures and captions that say their number; the damaged ones are no pictures."""
    samples = [(f"{n}", {"png": b"junk" if n in damaged else png((n, 0, 0)), "en.txt": f"{n}"}) for n in range(size)]
    return write_tar(tmp_path / name, samples)


def test_bad_sample_is_replaced_by_one_of_its_shard_and_named_in_the_batch(tmp_path):
    damaged = (3, 4, 11)
    shards = [shard_with_damage(tmp_path, damaged, 20), shard_with_damage(tmp_path, (), 20, "1.tar")]
    dataset = image_texts({"urls": shards})
    refs = [dataset.plan[position] for position in range(40)]
    batch = dataset.__getitems__(range(40))
    assert texts_of(batch.text) == batch.keys
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [int(key) for key in batch.keys]
    for ref, key in zip(refs, batch.keys, strict=True):
        if ref.index in damaged:
            assert int(key) not in damaged
        else:
            assert int(key) == ref.index % 20
    met = [ref.index for ref in refs if ref.index in damaged]
    assert batch.skipped == [
        ("image_type", shards[0], f"{n}", "neither JPEG, PNG nor WebP: it begins with b'junk'") for n in met
    ]


def test_replacement_depends_on_seed_and_epoch_and_on_nothing_else(tmp_path):
    path = shard_with_damage(tmp_path, (7,), 30)

    def replacement(epoch, seed=0, together=30):
        dataset = image_texts(path, plan_seed=seed)
        positions = range(30 * epoch, 30 * epoch + 30)
        place = next(n for n in positions if dataset.plan[n].index == 7)
        start = place - place % together
        return dataset.__getitems__(range(start, start + together)).keys[place - start]

    assert replacement(0) == replacement(0, together=1) == replacement(0, together=5)
    assert len({replacement(epoch) for epoch in range(5)}) > 1
    assert len({replacement(0, seed=seed) for seed in range(5)}) > 1


def test_shard_without_any_good_sample_is_replaced_by_others_at_bounded_cost(tmp_path, monkeypatch):
    shards = [shard_with_damage(tmp_path, range(50), 50), shard_with_damage(tmp_path, (), 50, "1.tar")]
    dataset = image_texts({"urls": shards})
    reads = []
    read = dataset.reader.read
    monkeypatch.setattr(dataset.reader, "read", lambda *place: reads.append(place) or read(*place))
    batch = dataset.__getitems__(range(100))
    assert len(batch.skipped) == 50  # those that the plan visits, not those tried in their place
    assert {skipped.shard for skipped in batch.skipped} == {shards[0]}
    assert len(reads) < 50 + 50 * 12


def test_only_good_sample_of_a_source_replaces_all_others(tmp_path):
    samples = [("0", {"json": {"en": "a", "zh": "甲"}}), ("1", {"json": {"en": "b"}})]
    dataset = text_pairs(write_tar(tmp_path / "0.tar", samples))
    assert dataset.__getitems__(range(4)).keys == ["0"] * 4


def test_source_without_any_good_sample_is_an_error(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("k", {"json": {"en": "a"}})])
    with pytest.raises(ValueError, match=r"0\.tar' has no sample that can be used .* of 'k' in .*language_missing: "):
        text_pairs(path).__getitems__([0])


def test_bytes_that_vanish_are_a_bad_sample(parallel):
    dataset = text_pairs(parallel)
    dataset.__getitems__([0])
    with open(parallel, "r+b") as file:
        file.truncate(5 * 1024)
    assert {skipped.reason for skipped in dataset.__getitems__(range(10)).skipped} == {"unreadable"}


def test_member_of_too_many_bytes_is_skipped_before_it_is_read(tmp_path, monkeypatch):
    samples = [(f"{n}", {"png": png("red"), "en.txt": "a" * (400 if n == 3 else 40)}) for n in range(20)]
    dataset = image_texts(write_tar(tmp_path / "0.tar", samples))
    monkeypatch.setattr(shards_module, "MAX_MEMBER_BYTES", 300)
    reads = []
    pread = shards_module.os.pread
    monkeypatch.setattr(shards_module.os, "pread", lambda *place: reads.append(place[1]) or pread(*place))
    (skipped,) = dataset.__getitems__(range(20)).skipped
    assert (skipped.reason, skipped.key, skipped.detail) == ("member_bytes", "3", "en.txt has 400 bytes, limit 300")
    assert max(reads) < 300


def test_shard_that_vanishes_is_a_bad_sample(parallel, tmp_path):
    other = write_tar(tmp_path / "other.tar", [(f"o{n}", {"json": {"en": "a", "zh": "甲"}}) for n in range(10)])
    dataset = text_pairs({"urls": [parallel, other]})
    (tmp_path / "other.tar").unlink()
    batch = dataset.__getitems__(range(20))
    assert len(batch.skipped) == 10
    assert {(skipped.reason, skipped.shard) for skipped in batch.skipped} == {("unreadable", other)}


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_hand_over_what_they_skipped(tmp_path, workers):
    dataset = image_texts(shard_with_damage(tmp_path, range(0, 40, 5), 40))
    sampler = PlannedBatchSampler(plan=dataset.plan, global_batch_size=10, rank=0, world_size=1)
    arguments = {"batch_sampler": sampler, "collate_fn": already_a_batch, "multiprocessing_context": "fork"}
    alone = [dataset.__getitems__(positions) for positions in sampler]
    loaded = list(DataLoader(dataset, num_workers=workers, **arguments))
    assert [batch.skipped for batch in loaded] == [batch.skipped for batch in alone]
    assert [batch.keys for batch in loaded] == [batch.keys for batch in alone]
    assert sum(len(batch.skipped) for batch in alone) == 8

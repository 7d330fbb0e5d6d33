"""Planned datasets: what draws and batches depend on, and nothing else."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from altclip_train.data.sampler import PlannedBatchSampler, already_a_batch
from tests.pair_datasets import (
    image_texts,
    parallel_texts,
    pictures_with_captions,
    shift_red,
    text_pairs,
)


@pytest.fixture
def parallel(tmp_path):
    return parallel_texts(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    return pictures_with_captions(tmp_path)


def test_draws_depend_on_seed_and_epoch_and_on_nothing_else(parallel):
    def drawn(positions, seed=0):
        batch = text_pairs(parallel, plan_seed=seed).__getitems__(positions)
        return dict(zip(batch.keys, batch.languages, strict=True))

    assert drawn(range(10)) == drawn(range(10))
    assert {**drawn(range(4)), **drawn(range(4, 10))} == drawn(range(10))
    assert len({tuple(sorted(drawn(range(10 * e, 10 * e + 10)).items())) for e in range(3)}) == 3
    assert drawn(range(10)) != drawn(range(10), seed=1)


def test_augmentation_draws_depend_on_seed_and_epoch_and_on_nothing_else(pictures):
    def reds(positions, seed=0):
        dataset = image_texts(pictures, augmentation=shift_red, plan_seed=seed)
        batch = dataset.__getitems__(positions)
        return dict(zip(batch.keys, batch.pixel_values[:, 0, 0, 0].tolist(), strict=True))

    assert reds(range(10)) == {**reds(range(7, 10)), **reds(range(7))}
    assert reds(range(10)) != reds(range(10, 20))
    assert reds(range(10)) != reds(range(10), seed=1)
    assert len(set(reds(range(10)).values())) > 5


def test_loader_processes_and_ranks_do_not_change_the_order(pictures):
    def batches(rank, ranks, workers):
        dataset = image_texts(pictures, augmentation=shift_red)
        sampler = PlannedBatchSampler(plan=dataset.plan, global_batch_size=5, rank=rank, world_size=ranks)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=already_a_batch,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        return list(loader)

    alone = batches(0, 1, 0)
    halves = list(zip(batches(0, 2, 2), batches(1, 2, 0), strict=True))
    for whole, (first, second) in zip(alone, halves, strict=True):
        assert whole.keys == first.keys + second.keys
        assert torch.equal(whole.pixel_values, torch.cat([first.pixel_values, second.pixel_values]))


def test_dataset_survives_pickling(pictures):
    dataset = image_texts(pictures)
    dataset.__getitems__([0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.__getitems__([3, 4]).keys == dataset.__getitems__([3, 4]).keys
    assert copy.fingerprint == dataset.fingerprint


def test_fingerprint_stands_for_shards_seed_and_weights(parallel, pictures):
    fingerprints = {
        text_pairs(parallel).fingerprint,
        text_pairs(parallel, plan_seed=1).fingerprint,
        text_pairs(pictures).fingerprint,
        text_pairs([parallel, pictures]).fingerprint,
        text_pairs([{"urls": parallel, "weight": 2}, {"urls": pictures, "weight": 1}]).fingerprint,
    }
    assert len(fingerprints) == 5
    assert text_pairs(parallel).fingerprint in fingerprints

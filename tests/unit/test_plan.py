"""The order of samples: complete, endless, weighted, and blind to ranks."""

import math
import pickle
from collections import Counter, defaultdict
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altclip_train.data import plan as plan_module
from altclip_train.data.plan import Plan, _stable_order, permutation, stable_hash
from altclip_train.data.sampler import PlannedBatchSampler

SHARD_COUNTS = st.lists(
    st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda counts: sum(counts) > 0),
    min_size=1,
    max_size=5,
)


@st.composite
def plans(draw):
    shard_counts = draw(SHARD_COUNTS)
    weight = st.floats(0.05, 20).map(lambda value: round(value, 3))
    weights = draw(st.lists(weight, min_size=len(shard_counts), max_size=len(shard_counts)))
    return {
        "shard_counts": shard_counts,
        "weights": weights,
        "seed": draw(st.integers(0, 2**40)),
        "block_size": draw(st.integers(1, 12)),
        "window_blocks": draw(st.integers(1, 4)),
    }


def take(plan, count, start=0):
    return [plan[position] for position in range(start, start + count)]


@settings(max_examples=60, deadline=None)
@given(plans())
def test_plan_gives_every_sample_once_per_source_epoch(arguments):
    plan = Plan(**arguments)
    visits = defaultdict(list)
    for ref in take(plan, 3 * plan.epoch_samples):
        visits[ref.source, ref.source_epoch].append(ref.index)
    for (source, source_epoch), indices in visits.items():
        everything = set(range(sum(arguments["shard_counts"][source])))
        assert len(set(indices)) == len(indices)
        if (source, source_epoch + 1) in visits:  # this epoch is over
            assert set(indices) == everything
        else:
            assert set(indices) <= everything


@settings(max_examples=60, deadline=None)
@given(plans())
def test_plan_keeps_weights_within_its_bound_everywhere(arguments):
    shares = [Fraction(str(weight)) for weight in arguments["weights"]]
    shares = [share / sum(shares) for share in shares]
    bound = math.ceil(math.log2(len(shares)))
    given_by = [0] * len(shares)
    for seen, ref in enumerate(take(Plan(**arguments), 300), start=1):
        given_by[ref.source] += 1
        assert all(abs(n - seen * share) <= bound for n, share in zip(given_by, shares, strict=True))


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 10**12))
def test_plan_seeks_to_the_same_sample_as_a_reader_that_walks_there(arguments, far):
    walked, sought = Plan(**arguments), Plan(**arguments)
    forward = take(walked, 40, start=far)
    assert forward == [sought[position] for position in reversed(range(far, far + 40))][::-1]


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 5), st.integers(1, 23), st.integers(0, 3))
def test_ranks_are_disjoint_and_together_the_global_batch(arguments, world_size, batch, epoch):
    plan = Plan(**arguments)
    batch = max(1, min(batch, plan.epoch_samples))
    world_size = min(world_size, batch)

    def batches(rank, ranks):
        sampler = PlannedBatchSampler(plan=plan, global_batch_size=batch, rank=rank, world_size=ranks)
        sampler.seek(epoch * len(sampler) * batch)
        return list(sampler)

    alone = batches(0, 1)
    by_rank = [batches(rank, world_size) for rank in range(world_size)]
    joined = [list(chain(*parts)) for parts in zip(*by_rank, strict=True)]
    assert joined == alone
    length = plan.epoch_samples // batch
    assert list(chain(*alone)) == list(range(epoch * length * batch, (epoch + 1) * length * batch))


def test_default_weights_make_every_epoch_complete():
    counts = [[5, 0, 8], [21], [1]]
    plan = Plan(shard_counts=counts, weights=[13, 21, 1], seed=3)
    for epoch in range(3):
        visits = Counter((ref.source, ref.index) for ref in take(plan, 35, start=35 * epoch))
        assert len(visits) == 35


def test_order_differs_by_epoch_seed_and_source():
    def order(seed, source, epoch):
        plan = Plan(shard_counts=[[50], [50]], weights=[1, 1], seed=seed, block_size=10)
        refs = take(plan, 100, start=100 * epoch)
        return tuple(ref.index for ref in refs if ref.source == source)

    orders = {order(seed, source, epoch) for seed in (0, 1, 2) for source in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 12


def test_samples_are_permuted_within_windows_of_shuffled_blocks():
    plan = Plan(shard_counts=[[100]], weights=[1], seed=5, block_size=10, window_blocks=3)
    order = [ref.index for ref in take(plan, 100)]
    windows = [order[start : start + 30] for start in range(0, 100, 30)]
    blocks = [{index // 10 for index in window} for window in windows]
    assert [len(window) for window in blocks] == [3, 3, 3, 1]
    assert any(max(window) - min(window) > 2 for window in blocks)
    assert all([index // 10 for index in window] != sorted(index // 10 for index in window) for window in windows[:3])


def test_blocks_end_with_their_shard():
    plan = Plan(shard_counts=[[4, 4]], weights=[1], seed=0, block_size=5, window_blocks=1)
    assert {ref.index // 4 for ref in take(plan, 4)} in ({0}, {1})


def test_neighbours_of_the_order_come_from_all_blocks_of_a_window():
    plan = Plan(shard_counts=[[4096]], weights=[1], seed=0)
    blocks = Counter(ref.index // 256 for ref in take(plan, 512))
    # 32 are expected of each of the 16 blocks with a standard deviation of 5.3.
    assert len(blocks) == 16
    assert max(blocks.values()) < 32 + 5 * 5.3


def test_order_keeps_no_trace_of_the_order_in_the_shards():
    plan = Plan(shard_counts=[[1024] * 60], weights=[1], seed=7)
    order = np.array([ref.index for ref in take(plan, 15 * 4096)])
    windows = order.reshape(15, 4096)
    for window in windows:
        ranks = np.argsort(np.argsort(window))
        # The rank correlation of random orders has a standard deviation of 1 / sqrt(4095).
        assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 5 / math.sqrt(4095)
        # Of two neighbours, as many as in a random order were neighbours before: 2 of 4096, deviation sqrt(2).
        assert (np.abs(np.diff(window)) == 1).sum() <= 2 + 5 * math.sqrt(2)
    # A window is 16 of 240 blocks from anywhere: its mean deviates by that of the source over sqrt(16).
    means = windows.mean(axis=1)
    assert np.abs(means - 15 * 2048).max() < 5 * 15 * 4096 / math.sqrt(12 * 16)
    assert abs(np.corrcoef(means, np.arange(15))[0, 1]) < 0.8  # of 15 random pairs, 0.8 or more is rarer than 1 in 1000


def test_consecutive_epochs_are_unrelated():
    plan = Plan(shard_counts=[[100] * 100], weights=[1], seed=7)
    first, second = (np.argsort([ref.index for ref in take(plan, 10_000, start)]) for start in (0, 10_000))
    # Blocks of 100 and windows of 16 of them: 100 blocks, so a deviation of 1 / sqrt(99) of their correlation.
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(99)


@pytest.mark.parametrize("position", [0, 10_000_000, 123_456_789_012])
def test_seeking_costs_the_same_everywhere(position, monkeypatch):
    work = []
    monkeypatch.setattr(plan_module, "permutation", lambda size, *key: work.append(size) or permutation(size, *key))
    plan = Plan(shard_counts=[[5000] * 400, [3000] * 100], weights=[1, 1], seed=1)
    assert not work
    take(plan, 100, start=position)
    blocks = [400 * 20, 100 * 12]
    # Of each source the blocks of one epoch and one window of at most 16 blocks of 256, or two next to each other.
    assert sorted(size for size in work if size in blocks) == sorted(blocks)
    assert sum(work) - sum(blocks) <= 2 * 2 * 16 * 256


def test_a_plan_is_sent_to_loader_processes_without_what_they_can_compute():
    plan = Plan(shard_counts=[[10_000] * 1000], weights=[1], seed=1)
    expected = take(plan, 20, start=10**6)
    data = pickle.dumps(plan)
    assert len(data) < 100 * 1000
    assert take(pickle.loads(data), 20, start=10**6) == expected


def test_every_sample_is_first_equally_often_over_seeds():
    firsts = Counter(Plan(shard_counts=[[6]], weights=[1], seed=seed, block_size=2)[0].index for seed in range(600))
    # 100 expected of each with a standard deviation of 9.1.
    assert all(abs(firsts[index] - 100) < 5 * 9.1 for index in range(6))


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 70_000])
def test_permutation_is_the_stable_order_of_raw_bits(size):
    bits = np.random.PCG64(stable_hash("window", size)).random_raw(size)
    assert np.array_equal(permutation(size, "window", size), np.argsort(bits, kind="stable"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 3, 1 << 20, (1 << 20) + 1, (1 << 64) - 1, (1 << 64) - 2]), min_size=1))
def test_stable_order_holds_for_equal_and_nearly_equal_keys(keys):
    keys = np.array(keys, dtype=np.uint64)
    assert np.array_equal(_stable_order(keys), np.argsort(keys, kind="stable"))


def test_permutation_is_the_same_in_every_version():
    assert permutation(8, "window", 1, 2).tolist() == [6, 3, 7, 5, 2, 0, 1, 4]
    assert stable_hash("a", 1) % 1000 == 154


def test_order_is_the_same_in_every_process_and_version():
    plan = Plan(shard_counts=[[30, 4], [9]], weights=[2, 1], seed=11, block_size=3)
    assert [(ref.source, ref.index) for ref in take(plan, 10, start=40)] == [
        (0, 25),
        (0, 30),
        (1, 8),
        (0, 16),
        (0, 4),
        (1, 1),
        (0, 7),
        (0, 20),
        (1, 2),
        (0, 32),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"weights": [1, 2]},
        {"shard_counts": [[3, 5], [7]]},
        {"block_size": 9},
        {"window_blocks": 2},
    ],
)
def test_fingerprint_changes_with_everything_that_changes_the_order(change):
    arguments = {
        "shard_counts": [[8], [7]],
        "weights": [1, 1],
        "seed": 7,
        "block_size": 4,
        "window_blocks": 3,
    }
    assert Plan(**arguments).fingerprint != Plan(**{**arguments, **change}).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard_counts": [[3], [0, 0]], "weights": [1, 1]}, "source 1 has no samples in its 2 shards"),
        ({"shard_counts": [[3]], "weights": [0]}, "above 0"),
        ({"shard_counts": [[3]], "weights": [math.inf]}, "finite"),
        ({"shard_counts": [[3]], "weights": [1, 2]}, "1 sources and 2 weights"),
        ({"shard_counts": [], "weights": []}, "0 sources"),
        ({"shard_counts": [[3]], "weights": [1], "block_size": 0}, "block_size=0"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Plan(seed=0, **arguments)


def test_positions_before_the_stream_are_refused():
    with pytest.raises(IndexError, match="-1"):
        Plan(shard_counts=[[3]], weights=[1], seed=0)[-1]


def sampler(**arguments):
    plan = Plan(shard_counts=[[23]], weights=[1], seed=0)
    return PlannedBatchSampler(**{"plan": plan, "global_batch_size": 5, "rank": 0, "world_size": 1, **arguments})


# 4 batches an epoch: 30 is the third batch of epoch 1, 20 its first, which is also where epoch 0 ends.
@pytest.mark.parametrize(
    ("position", "starts"), [(0, [0, 5, 10, 15]), (30, [30, 35]), (20, [20, 25, 30, 35]), (40, [40, 45, 50, 55])]
)
def test_a_pass_begins_at_the_position_and_ends_with_its_epoch(position, starts):
    resumed = sampler()
    resumed.seek(position)
    assert [batch[0] for batch in resumed] == starts
    assert len(resumed) == 4


@pytest.mark.parametrize("position", [12, -5])
def test_a_position_inside_a_batch_is_refused(position):
    with pytest.raises(ValueError, match=f"position={position} is no multiple of data.global_batch_size=5"):
        sampler().seek(position)


def test_epoch_may_be_shorter_or_longer_than_the_sources():
    assert len(sampler(epoch_samples=11)) == 2
    assert len(sampler(epoch_samples=100)) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch_size": 24}, "23 samples .* lower data.global_batch_size to at most 23"),
        ({"world_size": 6}, "at least one sample"),
        ({"rank": 1}, "rank 1 of world_size 1"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)

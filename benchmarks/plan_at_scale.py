"""Time and memory of the planned order of very large data, without the data: ``python benchmarks/plan_at_scale.py``.

Prints one JSON object. Memory is the growth of the peak resident size, so that imports do not count.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from altclip_train.data.plan import Plan


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    arguments = parser.parse_args()
    counts = [arguments.samples_per_shard] * arguments.shards
    samples = sum(counts)

    before = peak_megabytes()
    make, plan = seconds(lambda: Plan(shard_counts=[counts], weights=[1.0], seed=0))
    starts, _ = seconds(lambda: list(accumulate(counts, initial=0)))  # what a dataset keeps beside the plan
    first, _ = seconds(lambda: plan[0])
    planned = peak_megabytes() - before
    far, _ = seconds(lambda: plan[samples // 100])
    stretch, _ = seconds(lambda: [plan[position] for position in range(100_000)])
    next_epoch, _ = seconds(lambda: plan[samples])
    pickled, data = seconds(lambda: pickle.dumps(plan))
    result = {
        "samples": samples,
        "shards": arguments.shards,
        "start_up_seconds": make + starts + first,
        "peak_megabytes": planned,
        "seconds": {
            "make_the_plan": make,
            "starts_of_shards": starts,
            "first_sample": first,
            f"seek_to_{samples // 100}": far,
            "per_sample_in_order": stretch / 100_000,
            "first_sample_of_the_next_epoch": next_epoch,
            "pickle_for_a_loader_process": pickled,
        },
        "pickled_megabytes": len(data) / 1e6,
        "peak_megabytes_with_two_epochs": peak_megabytes() - before,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

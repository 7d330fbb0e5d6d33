"""Where the time of our steps goes, by kind: ``python benchmarks/profile_step.py --stage one --size small``.

The steps are those of `ours_cached` in stage_one.py and stage_two.py, under torch's profiler, which slows small
operations down a little. Time is that of an operation itself, without those that it calls; on a GPU that of its
kernels, so that what is left is time in which the GPU has nothing to do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import shapes
import sides
import stage_one
import stage_two
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention", "varlen"),
    "activations and norms": ("gelu", "silu", "layer_norm", "sigmoid"),
    "optimizer": ("_fused_adamw_", "_foreach"),
    "embedding tables": ("embedding",),
    "copies, joins and zeros": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::empty", "index"),
    "sums and elementwise": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::sub", "aten::exp"),
}
OTHER = "everything else, Python included"
OWN_KERNELS = {"_forward", "_backward_queries", "_backward_keys"}  # short_attention.py's: no operation calls them


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def shares(step: Any, steps: int, device: str) -> dict[str, float]:
    """Per cent of the wall time of the steps by kind, the first step left out."""
    step(0)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler, sides.timed() as wall:
        for number in range(1, steps + 1):
            step(number)
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        # The kernels of a GPU are listed once more by their own names.
        if event.device_type == DeviceType.CPU or event.key in OWN_KERNELS:
            time = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            spent["attention" if event.key in OWN_KERNELS else kind_of(event.key)] += time / 1e6
    measured = sum(spent.values()) - spent[OTHER]
    result = {kind: 100 * spent[kind] / wall["seconds"] for kind in KINDS}
    return {**result, OTHER: 100 * (1 - measured / wall["seconds"])}


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--stage", choices=["one", "two"], default="one", help="default: %(default)s")
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=256, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="that are looked at (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.side, rounds = "ours_cached", options.rounds
    with tempfile.TemporaryDirectory() as options.models:
        shapes.write_models(Path(options.models), options.size)
        # The sides draw the texts of `rounds` rounds and of one that warms up.
        drawing = argparse.Namespace(**{**vars(options), "rounds": options.steps, "steps": 1})
        if options.stage == "one":
            step: Any = stage_one.Ours(drawing, stage_one.batches(drawing)).step
        else:
            trained = stage_two.Ours(drawing)
            step = lambda number: trained.step(number, None)  # noqa: E731
        found = [shares(step, options.steps, options.device) for _ in range(rounds)]
    rows = [sides.row(kind, [one[kind] for one in found], "%") for kind in found[0]]
    title = f"Time of a step, stage {options.stage}, {options.size}, {options.dtype}"
    sides.report(options, title, rows, batch=options.batch)


if __name__ == "__main__":
    main()

"""The contrastive loss beside open_clip's ClipLoss, forward and backward: ``python benchmarks/loss.py --peers PYTHON``.

All sides take the same normalised features; loss and gradient must agree within 1e-5 first. Extra memory is the peak of
one loss in a fresh process beyond libraries, features and their gradients. Sizes above --most-compared, whose matrix of
all pairs does not fit, are computed by us alone, once.

    ours, open_clip                 both sides have a gradient
    ours_locked, open_clip_locked   the image side has none
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

import sides
import torch
import torch.nn.functional as F
from stage_one import TOLERANCE
from torch import Tensor

OURS, PEERS = ["ours", "ours_locked"], ["open_clip", "open_clip_locked"]
AIMS = {  # at least, from this size up
    "float32": {"ours": {256: 1.0, 8192: 2.0, 16_384: 2.3}, "ours_locked": {256: 1.0, 8192: 2.7}},
    "bfloat16": {"ours": {256: 1.0, 8192: 3.2}, "ours_locked": {256: 1.0}},
}
MEMORY_AIMS = {8192: 18.0, 16_384: 30.0}  # at least
MOST_GIGABYTES = 8.0
# A tensor is mapped by itself and given back when it is freed: what counts is in use, not a hole in glibc's heap.
ONLY_IN_USE = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def features(pairs: int, width: int) -> tuple[Tensor, Tensor]:
    """Image and text features (B, D) that agree as those of a trained model do, somewhat."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(pairs, width, generator=generator), dim=-1)
    text = F.normalize(image + 8.0 * torch.randn(pairs, width, generator=generator) / width**0.5, dim=-1)
    return image, text


def loss_of(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if name in OURS:
        from altclip_train.losses import contrastive_loss

        return contrastive_loss
    from peers import open_clip_loss

    loss = open_clip_loss()
    return lambda image, text, logit_scale: loss(image, text, logit_scale.exp())


def side(options: argparse.Namespace) -> None:
    (pairs,) = options.pairs
    repeats = max(1, min(32, (4096 // pairs) ** 2))

    def prepare() -> sides.Round:
        loss_function = loss_of(options.side)
        logit_scale = torch.tensor(math.log(options.scale), requires_grad=True, device=options.device)

        def leaves(pairs: int) -> tuple[Tensor, Tensor]:
            image, text = (
                part.to(options.device, getattr(torch, options.dtype)) for part in features(pairs, options.width)
            )
            return image.requires_grad_(not options.side.endswith("locked")), text.requires_grad_()

        loss_function(*leaves(64), logit_scale).backward()  # what libraries allocate once
        image, text = leaves(pairs)
        gradients = [torch.ones_like(part) for part in (image, text) if part.requires_grad]
        sides.models_follow()
        del gradients

        def once(_: int) -> Mapping[str, Any]:
            with sides.timed() as taken:
                for _ in range(repeats):
                    image.grad = text.grad = logit_scale.grad = None
                    loss = loss_function(image, text, logit_scale)
                    loss.backward()
            assert text.grad is not None
            seconds = {name: value / repeats for name, value in taken.items()}
            return {"loss": loss.item(), "gradient": text.grad.float().norm().item(), **seconds}

        return once

    sides.serve(options, prepare)


def rows_of(options: argparse.Namespace, pairs: int, done: Mapping[str, sides.Side]) -> list[dict[str, Any]]:
    rows = []
    for own, peer in zip(OURS, PEERS, strict=True):
        if peer in done:
            for figure in ("loss", "gradient"):
                ours, theirs = done[own].first[figure], done[peer].first[figure]
                assert math.isclose(ours, theirs, rel_tol=TOLERANCE[options.dtype]), (figure, ours, theirs)
        for row in sides.faster(done, own, peer, aim(options.dtype, own, pairs)):
            rows.append({**row, "what": f"{pairs:,} pairs: {row['what']}"})
    if pairs in MEMORY_AIMS:
        rows += [
            {**row, "what": f"{pairs:,} pairs: extra {row['what']}"}
            for row in sides.smaller(done, OURS[0], PEERS[0], MEMORY_AIMS[pairs])
        ]
    if pairs > options.most_compared:
        seconds = done[OURS[0]].column("seconds")
        whole = done[OURS[0]].peak_bytes + 4 * pairs * options.width * 4  # two features, two gradients
        gigabytes = (
            f"{pairs:,} pairs: memory of features, gradients and loss (one matrix: {pairs**2 * 4 / 2**30:,.0f} GiB)"
        )
        rows.append(sides.row(f"{pairs:,} pairs: ours", seconds, "s"))
        rows.append(sides.row(gigabytes, [whole / 1e9], "GB", MOST_GIGABYTES, at_most=True))
    return rows


def aim(dtype: str, own: str, pairs: int) -> float | None:
    return max((value for size, value in AIMS[dtype][own].items() if size <= pairs), default=None)


def measure(options: argparse.Namespace, pairs: int) -> dict[str, sides.Side]:
    arguments = [f"--pairs={pairs}", f"--width={options.width}", f"--scale={options.scale}"]
    once = argparse.Namespace(**{**vars(options), "rounds": 1})
    if pairs > options.most_compared:
        return sides.take_turns(once, OURS[:1], [], arguments, warm_up=0)
    done = sides.take_turns(options, OURS, PEERS, arguments)
    if options.device == "cpu":  # torch itself counts what is in use on a GPU
        for name, fresh in sides.take_turns(once, OURS, PEERS, arguments, warm_up=0, settings=ONLY_IN_USE).items():
            done[name].peak_bytes = fresh.peak_bytes
    return done


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[8192], metavar="B", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=512, metavar="D", help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) (default: %(default)s)")
    parser.add_argument("--most-compared", type=int, default=32_768, metavar="B", help="default: %(default)s")
    options = parser.parse_args()
    if options.side:
        return side(options)
    if reason := sides.without_bfloat16(options):
        rows = [
            sides.row(f"{pairs:,} pairs: open_clip / ours", aim=aim(options.dtype, "ours", pairs))
            for pairs in options.pairs
        ]
        return sides.report(options, f"Loss, {options.dtype}", rows, not_applicable=reason)
    rows: list[dict[str, Any]] = []
    everything: dict[str, sides.Side] = {}
    for pairs in options.pairs:
        done = measure(options, pairs)
        rows += rows_of(options, pairs, done)
        everything |= {f"{name}, {pairs:,} pairs": side for name, side in done.items()}
    return sides.report(options, f"Loss, {options.dtype}", rows, everything, width=options.width, scale=options.scale)


if __name__ == "__main__":
    main()

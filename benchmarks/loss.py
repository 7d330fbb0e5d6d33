"""The contrastive loss beside open_clip's ClipLoss, forward and backward: ``python benchmarks/loss.py --peers PYTHON``.

Both take the same normalised features. Extra memory is that of a fresh process: its peak with the loss minus its peak
with the features and their gradients alone.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import sides
import torch
import torch.nn.functional as F
from torch import Tensor


def features(pairs: int, width: int) -> tuple[Tensor, Tensor]:
    """Image and text features (B, D) that agree as those of a trained model do, somewhat."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(pairs, width, generator=generator), dim=-1)
    text = F.normalize(image + 8.0 * torch.randn(pairs, width, generator=generator) / width**0.5, dim=-1)
    return image, text


def loss_of(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if name.startswith("ours"):
        from altclip_train.losses import contrastive_loss

        return contrastive_loss
    from peers import open_clip_loss

    loss = open_clip_loss()
    return lambda image, text, logit_scale: loss(image, text, logit_scale.exp())


def side(options: argparse.Namespace) -> None:
    def prepare() -> tuple[Mapping[str, Any], sides.Round]:
        torch.set_num_threads(options.threads)
        image, text = features(options.pairs, options.width)
        image.requires_grad_(not options.side.endswith("locked"))
        text.requires_grad_()
        logit_scale = torch.tensor(math.log(options.scale), requires_grad=True)
        loss_function = loss_of(options.side)

        def once(_: int) -> Mapping[str, Any]:
            image.grad = text.grad = logit_scale.grad = None
            loss = loss_function(image, text, logit_scale)
            loss.backward()
            assert text.grad is not None
            return {"loss": loss.item(), "gradient": text.grad.norm().item()}

        return {}, once

    sides.serve(prepare)


def extra_bytes(name: str, options: argparse.Namespace) -> int:
    """What a fresh process needs beyond features and gradients, in bytes."""
    python = sys.executable if name.startswith("ours") else options.peers
    command = [python, __file__, "--side", f"memory:{name}", "--pairs", str(options.pairs)]
    command += ["--width", str(options.width), "--threads", str(options.threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    name = options.side.removeprefix("memory:")
    loss_function, logit_scale = loss_of(name), torch.tensor(math.log(options.scale), requires_grad=True)
    small = [part.requires_grad_() for part in features(64, options.width)]
    loss_function(*small, logit_scale).backward()  # what libraries allocate once
    image, text = features(options.pairs, options.width)
    image.requires_grad_(not name.endswith("locked"))
    text.requires_grad_()
    gradients = [torch.ones_like(part) for part in (image, text)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del gradients
    loss_function(image, text, logit_scale).backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--pairs", type=int, default=8192, metavar="B", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=512, metavar="D", help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=100.0, help="exp(logit_scale) (default: %(default)s)")
    options = parser.parse_args()
    if options.side and options.side.startswith("memory:"):
        return measure_memory(options)
    if options.side:
        return side(options)
    arguments = [f"--pairs={options.pairs}", f"--width={options.width}", f"--scale={options.scale}"]
    done = {
        s.name: s
        for s in sides.take_turns(options, ["ours", "ours_locked"], ["open_clip", "open_clip_locked"], arguments)
    }
    matrix = options.pairs**2 * 4
    print(f"{options.pairs} pairs x {options.width}, float32; one matrix of all pairs has {matrix / 2**20:,.0f} MiB")
    for name, measured in done.items():
        seconds = statistics.median(r["seconds"] for r in measured.rounds)
        extra = extra_bytes(name, options)
        measured.facts["extra_bytes"] = extra
        print(f"{name:18s} {seconds:8.3f} s  {extra / 2**20:8,.0f} MiB extra  loss {measured.rounds[0]['loss']:.6f}")
    for name in ("", "_locked"):
        if f"open_clip{name}" in done:
            own, peer = done[f"ours{name}"], done[f"open_clip{name}"]
            for key in ("loss", "gradient"):
                assert math.isclose(own.rounds[0][key], peer.rounds[0][key], rel_tol=1e-5), (key, own, peer)
            memory = peer.facts["extra_bytes"] / own.facts["extra_bytes"]
            faster = sides.spread(sides.ratios(own, peer))
            print(f"open_clip{name} / ours{name}: time {faster} times, extra memory {memory:.1f} times")
    sides.report(options, list(done.values()), {"pairs": options.pairs, "width": options.width})
    return None


if __name__ == "__main__":
    main()

"""Steps of stage two beside open_clip's with a locked image tower: ``python benchmarks/stage_two.py --peers PYTHON``.

Every side starts from the same weights and trains on the same token ids and pictures; the loss of the first batch must
agree within 1e-5. Reading and decoding are outside of what is measured.

    ours_cached     text tower alone, towards cached image features
    ours            the same with the image tower in the loop: what a first epoch costs
    open_clip       its step with --lock-image and XLM-R as text tower, padded to 77 tokens as its tokenizer does
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shapes
import sides
import torch
import torch.nn.functional as F
from torch import Tensor

OURS, PEERS = ["ours_cached", "ours"], ["open_clip"]
AIMS = {"ours_cached": {"small": 11.0, "base": 6.5}, "ours": {"small": 1.5}}
FIVE_EPOCHS = 4.7


def pictures(options: argparse.Namespace, number: int) -> Tensor:
    """Normalised pixels (B, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(options.batch, 3, 224, 224, generator=generator)


def texts(options: argparse.Namespace, number: int) -> shapes.Texts:
    return shapes.draw_texts(options.batch, shapes.STUDENTS[options.size]["vocab_size"], number)


class Ours:
    def __init__(self, options: argparse.Namespace, numbers: Sequence[int]) -> None:
        from altclip_train.models import AltCLIPModel
        from altclip_train.models.altclip import pack_padded
        from altclip_train.optim import parameter_groups

        self.model = AltCLIPModel.from_pretrained(Path(options.models) / "altclip").train()
        for part in (self.model.vision_model, self.model.visual_projection):
            part.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 0.01), lr=1e-4, fused=True)
        self.texts = [pack_padded(*texts(options, n)) for n in numbers]
        self.options = options
        self.cached: list[Tensor] = []
        if options.side == "ours_cached":
            self.cached = [self.encode(pictures(options, n)) for n in numbers]

    def encode(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.encode_image(pixel_values)

    def step(self, number: int, pixel_values: Tensor | None) -> float:
        from altclip_train.losses import contrastive_loss

        image = self.cached[number] if pixel_values is None else self.encode(pixel_values)
        text = F.normalize(self.model.encode_text(self.texts[number]), dim=-1)
        loss = contrastive_loss(F.normalize(image, dim=-1), text, self.model.logit_scale)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss.item()


def side(options: argparse.Namespace) -> None:
    def prepare() -> tuple[Mapping[str, Any], sides.Round]:
        torch.set_num_threads(options.threads)
        numbers = range((options.rounds + 1) * options.steps)
        if options.side in OURS:
            trained: Any = Ours(options, numbers)
        else:
            import peers

            trained = peers.StageTwo(Path(options.models), [texts(options, n) for n in numbers])

        def steps(number: int) -> Mapping[str, Any]:
            own = range(number * options.steps, (number + 1) * options.steps)
            drawn = [None if options.side == "ours_cached" else pictures(options, n) for n in own]
            with sides.timed() as seconds:
                losses = [trained.step(n, pixels) for n, pixels in zip(own, drawn, strict=True)]
            return {"losses": losses, **seconds}

        return {}, steps

    sides.serve(prepare)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a round (default: %(default)s)")
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps", "rounds")]
        done = {s.name: s for s in sides.take_turns(options, OURS, PEERS, [*arguments, f"--models={directory}"])}
    for name, measured in done.items():
        rate = statistics.median(options.batch * options.steps / r["seconds"] for r in measured.rounds)
        peak = max(r["peak_bytes"] for r in measured.rounds) / 2**20
        print(f"{name:12s} {rate:8.1f} pairs/s   peak {peak:6,.0f} MiB   loss {measured.first['losses'][0]:.6f}")
    if (peer := done.get("open_clip")) is not None:
        for name, aims in AIMS.items():
            first = [side.first["losses"][0] for side in (peer, done[name])]
            assert math.isclose(*first, rel_tol=1e-5), (name, first)
            aim = f"   aim {aims[options.size]}" if options.size in aims else ""
            print(f"{name} : open_clip {sides.spread(sides.ratios(done[name], peer))} times{aim}")
        five = [
            5 * theirs["seconds"] / (once["seconds"] + 4 * cached["seconds"])
            for theirs, once, cached in zip(peer.rounds, done["ours"].rounds, done["ours_cached"].rounds, strict=True)
        ]
        print(
            f"five epochs, the first fills the cache : open_clip {sides.spread(five)} times   aim {FIVE_EPOCHS} (small)"
        )
    sides.report(options, list(done.values()), {"size": options.size, "batch": options.batch})
    return None


if __name__ == "__main__":
    main()

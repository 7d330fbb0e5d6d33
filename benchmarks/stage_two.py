"""Steps of stage two beside open_clip's with a locked image tower: ``python benchmarks/stage_two.py --peers PYTHON``.

Every side starts from the same weights and trains on the same token ids and pictures; the loss of the first batch must
agree within 1e-5 first (2 % in bfloat16). Reading, decoding and what a cache costs on the disk (2 KB a pair) are
outside of what is measured. A cache fixes the augmentation: each picture is seen in one form only.

    ours_cached     text tower alone, towards cached image features
    ours            the same with the image tower in the loop: what a first epoch, which fills the cache, costs
    open_clip       its step with --lock-image and XLM-R as text tower, padded to 77 tokens as its tokenizer does
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shapes
import sides
import torch
import torch.nn.functional as F
from stage_one import ROOFLINE, TOLERANCE
from torch import Tensor

OURS, PEER = ["ours_cached", "ours"], "open_clip"
FIVE_EPOCHS = "five epochs, the first fills the cache: open_clip / ours"
AIMS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("small", "float32"): {"ours_cached": 11.0, "ours": 1.5, FIVE_EPOCHS: 4.7, "memory": 2.0},
    ("small", "bfloat16"): {"ours_cached": 5.5},
    ("base", "float32"): {"ours_cached": 6.5, "memory": 2.0},
}


def pictures(options: argparse.Namespace, number: int) -> Tensor:
    """Normalised pixels (B, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(options.batch, 3, 224, 224, generator=generator).to(options.device)


def texts(options: argparse.Namespace) -> list[shapes.Texts]:
    """B texts for each step of all rounds."""
    vocabulary = shapes.STUDENTS[options.size]["vocab_size"]
    numbers = range((options.rounds + 1) * options.steps)
    return [shapes.draw_texts(options.batch, vocabulary, n).to(options.device) for n in numbers]


class Ours:
    def __init__(self, options: argparse.Namespace) -> None:
        from altclip_train.adamw import AdamW
        from altclip_train.models import AltCLIPModel
        from altclip_train.models.altclip import pack_padded
        from altclip_train.optim import parameter_groups, take_gradients_by_rows

        sides.ours_follows(options)
        self.options = options
        self.model = AltCLIPModel.from_pretrained(Path(options.models) / "altclip").train().to(options.device)
        for part in (self.model.vision_model, self.model.visual_projection):
            part.requires_grad_(False)
        self.optimizer = AdamW(parameter_groups(self.model, 0.01), lr=1e-4, fused=True)
        take_gradients_by_rows(self.model, self.optimizer)
        self.texts = [pack_padded(*drawn) for drawn in texts(options)]
        self.cached: list[Tensor] = []
        if options.side == "ours_cached":
            self.cached = [self.encode(pictures(options, n)) for n in range(len(self.texts))]
        self.flops = [self.flops_of(number) for number in range(len(self.texts))]

    def encode(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad(), sides.autocast(self.options):
            return self.model.encode_image(pixel_values).float()

    def step(self, number: int, pixel_values: Tensor | None) -> dict[str, float]:
        from altclip_train.losses import contrastive_loss

        with sides.timed() as compute:
            image = self.cached[number] if pixel_values is None else self.encode(pixel_values)
            with sides.autocast(self.options):
                text = F.normalize(self.model.encode_text(self.texts[number]).float(), dim=-1)
                loss = contrastive_loss(F.normalize(image, dim=-1), text, self.model.logit_scale)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return {"loss": loss.item(), "compute_seconds": compute["seconds"], "flops": self.flops[number]}

    def flops_of(self, number: int) -> float:
        from altclip_train.models.flops import image_flops, text_flops

        projection = 2 * self.model.text_projection.weight.numel() * self.options.batch
        image = 0 if self.cached else image_flops(self.model, self.options.batch)
        return 3 * (int(text_flops(self.model.text_model, self.texts[number])) + projection) + image


def side(options: argparse.Namespace) -> None:
    def prepare() -> sides.Round:
        if options.side in OURS:
            trained: Any = Ours(options)
        else:
            import peers

            trained = peers.StageTwo(options, texts(options))

        def steps(number: int) -> Mapping[str, Any]:
            own = range(number * options.steps, (number + 1) * options.steps)
            drawn = [None if options.side == "ours_cached" else pictures(options, n) for n in own]
            with sides.timed() as seconds:
                result = shapes.sums(trained.step(n, pixels) for n, pixels in zip(own, drawn, strict=True))
            return {**result, **seconds}

        return steps

    sides.serve(options, prepare)


def rows_of(done: Mapping[str, sides.Side], aims: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = [row for own in OURS for row in sides.faster(done, own, PEER, aims.get(own))]
    if PEER in done:
        wall, cpu = (
            [
                5 * theirs / (first + 4 * cached)
                for theirs, first, cached in zip(
                    *(done[name].column(figure) for name in (PEER, "ours", "ours_cached")), strict=True
                )
            ]
            for figure in ("seconds", "cpu_seconds")
        )
        rows.append(sides.row(FIVE_EPOCHS, wall, aim=aims.get(FIVE_EPOCHS), cpu=cpu))
    return [*rows, *sides.smaller(done, OURS[0], PEER, aims.get("memory")), *sides.smaller(done, "ours", PEER)]


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a round (default: %(default)s)")
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    key, title = (options.size, options.dtype), f"Stage two, {options.size}, {options.dtype}"
    aims = AIMS.get(key, {})
    if reason := sides.without_bfloat16(options):
        rows = [sides.row(f"{PEER} / {own}", aim=aims.get(own)) for own in OURS]
        return sides.report(options, title, rows, not_applicable=reason)
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps")]
        done = sides.take_turns(options, OURS, [PEER], [*arguments, f"--models={directory}"])
    losses = {name: s.first["loss"] for name, s in done.items() if name != sides.CEILING}
    assert all(math.isclose(x, losses["ours"], rel_tol=TOLERANCE[options.dtype]) for x in losses.values()), losses
    rows = [
        *rows_of(done, aims),
        *sides.roofline(options, done, OURS[0], ROOFLINE.get(key)),
        *sides.roofline(options, done, "ours"),
    ]
    pairs = options.batch * options.steps
    return sides.report(options, title, rows, done, per_round=pairs, unit="pairs", batch=options.batch)


if __name__ == "__main__":
    main()

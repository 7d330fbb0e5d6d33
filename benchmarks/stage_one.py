"""Steps of stage one beside those of its peers: ``python benchmarks/stage_one.py --size small --peers PYTHON``.

Every side starts from the same weights and trains on the same token ids; the loss of the first batch must agree within
1e-5 first (2 % in bfloat16). All texts are different, and tokenization is outside of what is measured.

    ours_cached             student alone, towards cached vectors of the teacher
    ours_first_epoch        the same with the teacher in the loop: what a first epoch costs
    authors                 transformers, padded to the longest of the batch, teacher in the loop, torch's default AdamW
    authors_fused           the same with fused AdamW
    sentence_transformers   its distillation loss and modules towards cached vectors, fused AdamW
    sorted_cached           transformers on batches of texts of similar length, cached vectors, fused AdamW

Ratios are of the time for one real token: that is the same as for one pair, but for `sorted_cached`, whose batches must
differ from the others'. Padding to the longest of a batch costs the more the larger the batch is.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import shapes
import sides
from torch import Tensor

OURS = ["ours_cached", "ours_first_epoch"]
Aims = Mapping[tuple[str, str], float | None]  # of a peer's time by that of one of our sides
SMALL: Aims = {
    ("authors", "ours_cached"): 8.0,
    ("authors", "ours_first_epoch"): 2.5,
    ("authors_fused", "ours_cached"): None,
    ("sentence_transformers", "ours_cached"): 4.0,
    ("sorted_cached", "ours_cached"): 1.4,
}
BASE: Aims = {
    ("authors", "ours_cached"): 3.2,
    ("authors_fused", "ours_cached"): 1.6,
}
LARGE: Aims = {  # on a GPU alone: no more peers fit beside each other
    ("authors_fused", "ours_cached"): None,
    ("authors_fused", "ours_first_epoch"): None,
}
AIMS: Mapping[tuple[str, str], Aims] = {
    ("small", "float32"): SMALL,
    ("small", "bfloat16"): {**dict.fromkeys(SMALL), ("authors", "ours_cached"): 6.0},
    ("base", "float32"): BASE,
    ("base", "bfloat16"): dict.fromkeys(BASE),
    ("large", "bfloat16"): LARGE,
    ("large", "float32"): LARGE,
}
ROOFLINE = {("small", "float32"): 65.0, ("base", "float32"): 75.0}  # per cent
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def batches(options: argparse.Namespace) -> list[tuple[shapes.Texts, shapes.Texts]]:
    """2B texts for the student and B for the teacher, for each step of all rounds."""
    vocabulary = shapes.STUDENTS[options.size]["vocab_size"]
    return [
        (
            shapes.draw_texts(2 * options.batch, vocabulary, 2 * n).to(options.device),
            shapes.draw_texts(options.batch, 0, 2 * n + 1, clip=True).to(options.device),
        )
        for n in range((options.rounds + 1) * options.steps)
    ]


class Ours:
    def __init__(self, options: argparse.Namespace, drawn: Sequence[tuple[shapes.Texts, shapes.Texts]]) -> None:
        from altclip_train.adamw import AdamW
        from altclip_train.models import AltCLIPTextModel, load_clip_text
        from altclip_train.models.altclip import pack_padded
        from altclip_train.optim import parameter_groups, take_gradients_by_rows

        sides.ours_follows(options)
        self.options = options
        self.teacher = load_clip_text(Path(options.models) / "clip").requires_grad_(False).to(options.device)
        self.student = AltCLIPTextModel.from_pretrained(Path(options.models) / "altclip").train().to(options.device)
        self.optimizer = AdamW(parameter_groups(self.student, 0.01), lr=1e-4, fused=True)
        take_gradients_by_rows(self.student, self.optimizer)
        self.packed = [(pack_padded(*student), pack_padded(*teacher)) for student, teacher in drawn]
        self.cached: list[Tensor] = []
        if options.side == "ours_cached":
            self.cached = [self.teacher.encode_packed(teacher) for _, teacher in self.packed]
        self.flops = [self.flops_of(number) for number in range(len(self.packed))]

    def step(self, number: int) -> dict[str, float]:
        from altclip_train.losses import distillation_loss

        student, teacher = self.packed[number]
        with sides.timed() as compute:
            with sides.autocast(self.options):
                target = self.cached[number] if self.cached else self.teacher.encode_packed(teacher)
                loss = distillation_loss(self.student.encode_packed(student), target.repeat(2, 1))
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        figures = {"compute_seconds": compute["seconds"], "flops": self.flops[number]}
        return {"loss": loss.item(), "tokens": len(student.input_ids), **figures}

    def flops_of(self, number: int) -> float:
        from altclip_train.models.flops import text_flops

        student, teacher = self.packed[number]
        return 3 * int(text_flops(self.student, student)) + (
            0 if self.cached else int(text_flops(self.teacher, teacher))
        )


def side(options: argparse.Namespace) -> None:
    def prepare() -> sides.Round:
        drawn = batches(options)
        if options.side in OURS:
            trained: Any = Ours(options, drawn)
        else:
            import peers

            trained = peers.StageOne(options, drawn)
        return lambda number: shapes.sums(trained.step(number * options.steps + n) for n in range(options.steps))

    sides.serve(options, prepare)


def check_losses(options: argparse.Namespace, done: Mapping[str, sides.Side]) -> None:
    """The first steps of all sides that train on the same batches."""
    losses = {name: s.first["loss"] for name, s in done.items() if name not in (sides.CEILING, "sorted_cached")}
    for name, loss in losses.items():
        assert math.isclose(loss, losses[OURS[0]], rel_tol=TOLERANCE[options.dtype]), (name, losses)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of a round (default: %(default)s)")
    names = sorted({peer for peer, _ in SMALL})
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names))
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    key, title = (options.size, options.dtype), f"Stage one, {options.size}, {options.dtype}"
    aims = {pair: aim for pair, aim in AIMS.get(key, dict.fromkeys(SMALL)).items() if pair[0] in options.only}
    if reason := sides.without_bfloat16(options):
        rows = [sides.row(f"{peer} / {own}", aim=aim) for (peer, own), aim in aims.items()]
        return sides.report(options, title, rows, not_applicable=reason)
    peers, ours = (list(dict.fromkeys(names)) for names in zip(*aims, strict=True))
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps")]
        done = sides.take_turns(options, ours, peers, [*arguments, f"--models={directory}"])
    check_losses(options, done)
    rows = [row for (peer, own), aim in aims.items() for row in sides.faster(done, own, peer, aim)]
    rows += [row for peer in peers for row in sides.smaller(done, OURS[0], peer)]
    rows += sides.roofline(options, done, OURS[0], ROOFLINE.get(key))
    pairs = options.batch * options.steps
    return sides.report(options, title, rows, done, per_round=pairs, unit="pairs", batch=options.batch)


if __name__ == "__main__":
    main()

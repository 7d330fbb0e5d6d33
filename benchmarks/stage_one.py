"""Steps of stage one beside those of its peers: ``python benchmarks/stage_one.py --size small --peers PYTHON``.

Every side starts from the same weights and trains on the same token ids; the loss of the first batch must agree within
1e-5. Tokenization is outside of what is measured.

    ours_cached             student alone, towards cached vectors of the teacher
    ours_first_epoch        the same with the teacher in the loop: what a first epoch costs
    authors                 transformers, padded to the longest of the batch, teacher in the loop, AdamW
    authors_fused           the same with fused AdamW
    sentence_transformers   its distillation loss towards cached vectors, fused AdamW
    sorted_cached           transformers on batches of texts of similar length, cached vectors, fused AdamW
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
from torch import Tensor

OURS = ["ours_cached", "ours_first_epoch"]
PEERS = ["authors", "authors_fused", "sentence_transformers", "sorted_cached"]
AIMS = {  # of the sizes small and base
    ("authors", "ours_cached"): {"small": 8.0, "base": 3.2},
    ("authors_fused", "ours_cached"): {"base": 1.6},
    ("authors", "ours_first_epoch"): {"small": 2.5},
    ("sentence_transformers", "ours_cached"): {"small": 4.0},
    ("sorted_cached", "ours_cached"): {"small": 1.4},
}


def batches(options: argparse.Namespace, count: int) -> list[tuple[shapes.Texts, shapes.Texts]]:
    """2B texts for the student and B for the teacher, `count` times."""
    vocabulary = shapes.STUDENTS[options.size]["vocab_size"]
    return [
        (
            shapes.draw_texts(2 * options.batch, vocabulary, 2 * n),
            shapes.draw_texts(options.batch, 0, 2 * n + 1, clip=True),
        )
        for n in range(count)
    ]


class Ours:
    def __init__(self, options: argparse.Namespace, drawn: Sequence[tuple[shapes.Texts, shapes.Texts]]) -> None:
        from altclip_train.models import AltCLIPTextModel, load_clip_text
        from altclip_train.models.altclip import pack_padded
        from altclip_train.optim import parameter_groups

        self.teacher = load_clip_text(Path(options.models) / "clip").requires_grad_(False)
        self.student = AltCLIPTextModel.from_pretrained(Path(options.models) / "altclip").train()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student, 0.01), lr=1e-4, fused=True)
        self.packed = [(pack_padded(*student), pack_padded(*teacher)) for student, teacher in drawn]
        self.cached: list[Tensor] = []
        if options.side == "ours_cached":
            self.cached = [self.teacher.encode_packed(teacher) for _, teacher in self.packed]

    def step(self, number: int) -> float:
        from altclip_train.losses import distillation_loss

        student, teacher = self.packed[number]
        target = self.cached[number] if self.cached else self.teacher.encode_packed(teacher)
        loss = distillation_loss(self.student.encode_packed(student), target.repeat(2, 1))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def side(options: argparse.Namespace) -> None:
    def prepare() -> tuple[Mapping[str, Any], sides.Round]:
        torch.set_num_threads(options.threads)
        drawn = batches(options, (options.rounds + 1) * options.steps)
        if options.side in OURS:
            trained: Any = Ours(options, drawn)
        else:
            import peers

            trained = peers.StageOne(options.side, Path(options.models), drawn, options.steps)

        def steps(number: int) -> Mapping[str, Any]:
            own = range(number * options.steps, (number + 1) * options.steps)
            return {"losses": [trained.step(n) for n in own]}

        return {}, steps

    sides.serve(prepare)


def roofline(options: argparse.Namespace, measured: sides.Side, gemm: float) -> float:
    """FLOPs of forward and backward over real tokens, by the time of a step at the measured rate of a matrix product.

    The time holds the optimizer too; the last layer's unneeded part counts as not computed.
    """
    shape = shapes.STUDENTS[options.size]
    width, hidden, layers = (shape[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    drawn = batches(options, (options.rounds + 1) * options.steps)[options.steps :]
    flops = 0.0
    for texts, _ in drawn:
        tokens, count = shapes.real_tokens(texts), len(texts.mask)
        last = 4 * width**2 * tokens + (4 * width**2 + 4 * width * hidden) * count + 4 * width * tokens
        flops += 3 * (shapes.text_flops(width, hidden, layers - 1, texts) + last)
    return flops / gemm / sum(r["seconds"] for r in measured.rounds)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="of a round (default: %(default)s)")
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps", "rounds")]
        done = {s.name: s for s in sides.take_turns(options, OURS, PEERS, [*arguments, f"--models={directory}"])}
    facts = sides.machine(options.threads)
    for name, measured in done.items():
        rate = statistics.median(options.batch * options.steps / r["seconds"] for r in measured.rounds)
        peak = max(r["peak_bytes"] for r in measured.rounds) / 2**20
        print(f"{name:24s} {rate:8.1f} pairs/s   peak {peak:6,.0f} MiB   loss {measured.first['losses'][0]:.6f}")
    for (peer, own), aims in AIMS.items():
        if peer in done:
            first = [done[name].first["losses"][0] for name in (peer, own)]
            assert peer == "sorted_cached" or math.isclose(*first, rel_tol=1e-5), (peer, own, first)
            aim = f"   aim {aims[options.size]}" if options.size in aims else ""
            print(f"{own} : {peer:24s} {sides.spread(sides.ratios(done[own], done[peer]))} times{aim}")
    share = roofline(options, done["ours_cached"], facts["gemm_gflops"] * 1e9)
    print(f"ours_cached: {share:.0%} of the rate of a large matrix product, optimizer included")
    sides.report(options, list(done.values()), {**facts, "size": options.size, "batch": options.batch})
    return None


if __name__ == "__main__":
    main()

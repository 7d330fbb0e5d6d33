"""What each switch does to a step of stage one: ``python benchmarks/switches.py --size base``.

Every side is our own step towards cached teacher vectors, gradients clipped as in training:

    dense            fused AdamW over every row of the word vectors
    locked           stage.locked=[embeddings.word_embeddings]
    trimmed          a vocabulary of 32,000, as `altclip trim` makes one; the texts of every side keep to it
    checkpointing    stage.gradient_checkpointing=true
    compiled         stage.compile=true; the first, uncounted round has the time of compiling

`locked` bounds what an optimizer that only touches the rows of a batch could win.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

import shapes
import sides
import torch

from altclip_train.losses import distillation_loss
from altclip_train.models import build_text_student, compile_blocks, pack_padded, set_gradient_checkpointing
from altclip_train.optim import parameter_groups

SIDES = ["dense", "locked", "trimmed", "checkpointing", "compiled"]
TRIMMED = 32_000


def side(options: argparse.Namespace) -> None:
    def prepare() -> tuple[Mapping[str, Any], sides.Round]:
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        shape = shapes.STUDENTS[options.size]
        vocabulary = min(TRIMMED, shape["vocab_size"])
        if options.side == "trimmed":
            shape = {**shape, "vocab_size": vocabulary}
        student = build_text_student(
            student=None, project_dim=512, max_position_embeddings=514, pad_token_id=shapes.PAD, **shape
        ).train()
        student.embeddings.word_embeddings.requires_grad_(options.side != "locked")
        set_gradient_checkpointing(student, options.side == "checkpointing")
        if options.side == "compiled":
            compile_blocks(student)
        trained = [p for p in student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameter_groups(student, 0.01), lr=1e-4, fused=True)
        packed = [pack_padded(*shapes.draw_texts(2 * options.batch, vocabulary, n)) for n in range(options.steps)]
        targets = torch.randn(2 * options.batch, 512)

        def steps(_: int) -> Mapping[str, Any]:
            with sides.timed() as update:
                pass
            for texts in packed:
                distillation_loss(student.encode_packed(texts), targets).backward()
                with sides.timed() as part:
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                update = {key: update[key] + part[key] for key in update}
            return {"update_seconds": update["seconds"], "update_cpu_seconds": update["cpu_seconds"]}

        return {"trained_parameters": sum(p.numel() for p in trained)}, steps

    sides.serve(prepare)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="base", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a round (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES, help="sides (default: all)")
    options = parser.parse_args()
    if options.side:
        return side(options)
    arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps")]
    done = {s.name: s for s in sides.take_turns(options, options.only, [], arguments)}
    for name, measured in done.items():
        seconds, update = (
            statistics.median(r[key] for r in measured.rounds) / options.steps for key in ("seconds", "update_seconds")
        )
        peak = max(r["peak_bytes"] for r in measured.rounds) / 2**20
        facts = f"{seconds:7.3f} s a step, {update:.3f} s of it after backward   peak {peak:6,.0f} MiB"
        if "dense" in done and name != "dense":
            facts += f"   dense : {name} {sides.spread(sides.ratios(measured, done['dense']))} times"
        print(f"{name:14s} {facts}")
    sides.report(options, list(done.values()), {"size": options.size, "batch": options.batch})
    return None


if __name__ == "__main__":
    main()

"""What each switch does to a step of stage one: ``python benchmarks/switches.py --size base``.

Every side is our own step towards cached teacher vectors, gradients clipped as in training:

    plain            as a run takes it without any switch
    dense            stage.optimizer._target_=torch.optim.AdamW: gradients of word vectors as large as their table
    locked           stage.locked=[embeddings.word_embeddings]
    trimmed          a vocabulary of 32,000, as `altclip trim` makes one; the texts of every side keep to it
    checkpointing    stage.gradient_checkpointing=true
    compiled         stage.compile=true; the first, uncounted round has the time of compiling

`locked` bounds what an optimizer that only touches the rows of a batch could win. On a GPU `dense` is `plain`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import shapes
import sides
import torch

from altclip_train.adamw import AdamW
from altclip_train.losses import distillation_loss
from altclip_train.models import build_text_student, compile_blocks, pack_padded, set_gradient_checkpointing
from altclip_train.optim import parameter_groups, take_gradients_by_rows
from altclip_train.sharding import clip_gradients

SIDES = ["plain", "dense", "locked", "trimmed", "checkpointing", "compiled"]
TRIMMED = 32_000


def side(options: argparse.Namespace) -> None:
    def prepare() -> sides.Round:
        sides.ours_follows(options)
        torch.manual_seed(0)
        shape = shapes.STUDENTS[options.size]
        vocabulary = min(TRIMMED, shape["vocab_size"])
        if options.side == "trimmed":
            shape = {**shape, "vocab_size": vocabulary}
        student = build_text_student(
            student=None, project_dim=512, max_position_embeddings=514, pad_token_id=shapes.PAD, **shape
        )
        student.train().to(options.device)
        student.embeddings.word_embeddings.requires_grad_(options.side != "locked")
        set_gradient_checkpointing(student, options.side == "checkpointing")
        if options.side == "compiled":
            compile_blocks(student)
        kind = torch.optim.AdamW if options.side == "dense" else AdamW
        optimizer = kind(parameter_groups(student, 0.01), lr=1e-4, fused=True)
        take_gradients_by_rows(student, optimizer)
        drawn = [shapes.draw_texts(2 * options.batch, vocabulary, n).to(options.device) for n in range(options.steps)]
        packed = [pack_padded(*texts) for texts in drawn]
        targets = torch.randn(2 * options.batch, 512, device=options.device)

        def steps(_: int) -> Mapping[str, Any]:
            with sides.timed() as update:
                pass
            for texts in packed:
                with sides.autocast(options):
                    loss = distillation_loss(student.encode_packed(texts), targets)
                loss.backward()
                with sides.timed() as part:
                    clip_gradients(student.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                update = {key: update[key] + part[key] for key in update}
            return {"update_seconds": update["seconds"]}

        return steps

    sides.serve(options, prepare)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="base", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of a round (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SIDES, default=SIDES, help="sides (default: all)")
    options = parser.parse_args()
    if options.side:
        return side(options)
    title = f"Switches of stage one, {options.size}, {options.dtype}"
    if reason := sides.without_bfloat16(options):
        return sides.report(options, title, [], not_applicable=reason)
    arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps")]
    done = sides.take_turns(options, options.only, [], arguments)
    rows = [row for name in SIDES[1:] for row in sides.faster(done, name, SIDES[0])]
    rows += [row for name in SIDES[1:] for row in sides.smaller(done, name, SIDES[0])]
    for name in options.only:
        seconds = [value / options.steps for value in done[name].column("update_seconds")]
        rows.append(sides.row(f"{name}: after backward, a step", seconds, "s"))
    pairs = options.batch * options.steps
    return sides.report(options, title, rows, done, per_round=pairs, unit="pairs", batch=options.batch)


if __name__ == "__main__":
    main()

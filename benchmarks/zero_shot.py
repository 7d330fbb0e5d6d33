"""Zero-shot classifiers beside those of CLIP_benchmark: ``python benchmarks/zero_shot.py --peers PYTHON``.

All sides have the same text tower and token ids, and their classifiers agree within 1e-5. Time grows with the number of
classes alone, so that sides take turns on few of them, and we alone then make a classifier of ImageNet's 1,000.

    ours                build_classifier: different prompts once, batches of similar length, nothing padded
    clip_benchmark      its loop over classes on open_clip's text tower, padded to 77 tokens as its tokenizer does
    clip_benchmark_dynamic  the same loop, padded to the longest prompt of a class
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import shapes
import sides
import torch

OURS, PEERS = ["ours"], ["clip_benchmark", "clip_benchmark_dynamic"]
AIMS = {"small": {"clip_benchmark": 8.5, "clip_benchmark_dynamic": 1.5}}


def side(options: argparse.Namespace) -> None:
    def prepare() -> sides.Round:
        vocabulary = shapes.STUDENTS[options.size]["vocab_size"]
        names, templates = shapes.draw_prompts(options.classes, options.templates, vocabulary)
        if options.side in OURS:
            from altclip_train.evaluation.encoder import Encoder
            from altclip_train.evaluation.zero_shot import build_classifier
            from altclip_train.models import AltCLIPModel

            sides.ours_follows(options)
            model = AltCLIPModel.from_pretrained(Path(options.models) / "altclip").to(options.device)
            processor: Any = SimpleNamespace(tokenizer=shapes.Words())
            encoder = Encoder(model, processor)

            def classifier() -> torch.Tensor:
                return build_classifier(encoder.encode_texts, names, templates)
        else:
            import peers

            length = None if options.side.endswith("dynamic") else shapes.LONGEST
            build = peers.clip_benchmark_classifier(options, length)

            def classifier() -> torch.Tensor:
                return build(names, templates).T

        def once(_: int) -> Mapping[str, Any]:
            with sides.timed() as seconds, sides.autocast(options):
                result = classifier()  # (C, D)
            return {**seconds, "corner": result[:3, :3].tolist()}

        return once

    sides.serve(options, prepare)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=20, metavar="C", help="default: %(default)s")
    parser.add_argument("--whole", type=int, default=1000, metavar="C", help="by us alone (default: %(default)s)")
    parser.add_argument("--templates", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    title, aims = f"Zero-shot classifiers, {options.size}, {options.dtype}", AIMS.get(options.size, {})
    if reason := sides.without_bfloat16(options):
        return sides.report(options, title, [sides.row(f"{p} / ours") for p in PEERS], not_applicable=reason)
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--size={options.size}", f"--templates={options.templates}", f"--models={directory}"]
        done = sides.take_turns(options, OURS, PEERS, [*arguments, f"--classes={options.classes}"])
        alone = argparse.Namespace(**{**vars(options), "rounds": 1})
        whole = sides.take_turns(alone, OURS, [], [*arguments, f"--classes={options.whole}"], warm_up=0)
    ours = torch.tensor(done["ours"].first["corner"])
    tolerance = 1e-5 if options.dtype == "float32" else 1e-2
    for name in set(PEERS) & set(done):
        torch.testing.assert_close(torch.tensor(done[name].first["corner"]), ours, rtol=0, atol=tolerance)
    rows = [row for peer in PEERS for row in sides.faster(done, "ours", peer, aims.get(peer))]
    rows.append(
        sides.row(f"ours: {options.whole:,} classes x {options.templates}", whole["ours"].column("seconds"), "s")
    )
    prompts = options.classes * options.templates
    facts = {"classes": options.classes, "templates": options.templates}
    return sides.report(options, title, rows, done, per_round=prompts, unit="prompts", **facts)


if __name__ == "__main__":
    main()

"""Zero-shot classifiers beside those of CLIP_benchmark: ``python benchmarks/zero_shot.py --peers PYTHON``.

All sides have the same text tower and token ids, and their classifiers agree within 1e-5. Time grows with the number of
classes alone; ImageNet has 1,000 classes and 80 templates.

    ours                build_classifier: different prompts once, batches of similar length, nothing padded
    clip_benchmark      its loop over classes on open_clip's text tower, padded to 77 tokens as its tokenizer does
    clip_benchmark_dynamic  the same loop, padded to the longest prompt of a class
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import shapes
import sides
import torch

OURS, PEERS = ["ours"], ["clip_benchmark", "clip_benchmark_dynamic"]
AIMS = {"clip_benchmark": 8.5, "clip_benchmark_dynamic": 1.5}


def side(options: argparse.Namespace) -> None:
    def prepare() -> tuple[Mapping[str, Any], sides.Round]:
        torch.set_num_threads(options.threads)
        vocabulary = shapes.STUDENTS[options.size]["vocab_size"]
        names, templates = shapes.draw_prompts(options.classes, options.templates, vocabulary)
        if options.side in OURS:
            from altclip_train.evaluation.encoder import Encoder
            from altclip_train.evaluation.zero_shot import build_classifier
            from altclip_train.models import AltCLIPModel

            model = AltCLIPModel.from_pretrained(Path(options.models) / "altclip")
            processor: Any = SimpleNamespace(tokenizer=shapes.Words())
            encoder = Encoder(model, processor)

            def classifier() -> torch.Tensor:
                return build_classifier(encoder.encode_texts, names, templates)
        else:
            import peers

            length = None if options.side.endswith("dynamic") else shapes.LONGEST
            build = peers.clip_benchmark_classifier(Path(options.models), length)

            def classifier() -> torch.Tensor:
                return build(names, templates).T

        def once(_: int) -> Mapping[str, Any]:
            with sides.timed() as seconds:
                result = classifier()  # (C, D)
            return {**seconds, "corner": result[:3, :3].tolist()}

        return {}, once

    sides.serve(prepare)


def main() -> None:
    parser = sides.parser(__doc__)
    parser.add_argument("--size", choices=sorted(shapes.STUDENTS), default="small", help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=40, metavar="C", help="default: %(default)s")
    parser.add_argument("--templates", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--models", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options)
    with tempfile.TemporaryDirectory() as directory:
        shapes.write_models(Path(directory), options.size)
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "classes", "templates", "rounds")]
        done = {s.name: s for s in sides.take_turns(options, OURS, PEERS, [*arguments, f"--models={directory}"])}
    for name, measured in done.items():
        rate = options.classes * options.templates / statistics.median(r["seconds"] for r in measured.rounds)
        print(f"{name:24s} {rate:8.0f} prompts/s")
    corner = torch.tensor(done["ours"].first["corner"])
    for name in PEERS:
        if name in done:
            torch.testing.assert_close(torch.tensor(done[name].first["corner"]), corner, rtol=0, atol=1e-5)
            faster = sides.spread(sides.ratios(done["ours"], done[name]))
            print(f"ours : {name:24s} {faster} times   aim {AIMS[name]} (small)")
    facts = {name: getattr(options, name) for name in ("size", "classes", "templates")}
    sides.report(options, list(done.values()), facts)
    return None


if __name__ == "__main__":
    main()

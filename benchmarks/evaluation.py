"""Metrics beside CLIP_benchmark's, from precomputed features: ``python benchmarks/evaluation.py --peers PYTHON``.

The sizes of ImageNet with 80 templates, and of COCO's test split. Both sides get the same features, and their scores
agree within 1e-6. Memory is the peak above what lay in memory before: the features are not part of it.

    ours_retrieval, ours_zero_shot     ranks in one pass over tiles of scores
    ours_*_intervals                   the same, with confidence intervals, which the peer does not have
    clip_benchmark_*                   its evaluate(), with towers that return the features
    floor_zero_shot                    the prompts' features looked up, pictures times classes, and nothing else
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sides
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("retrieval", "zero_shot")
FLOOR = "floor_zero_shot"
OURS = [*(f"ours_{kind}{more}" for kind in KINDS for more in ("", "_intervals")), FLOOR]
PEERS = [f"clip_benchmark_{kind}" for kind in KINDS]
NAMES = {"image_retrieval_recall": "text_to_image_R", "text_retrieval_recall": "image_to_text_R"}
NAMES |= {"acc1": "top1", "acc5": "top5"}
AIM = 5.0  # times as fast, and times less memory
Scores = Mapping[str, float]


class Prompts:
    """Features of prompts by their text: a text tower that has encoded them all before."""

    def __init__(self, options: argparse.Namespace, generator: torch.Generator) -> None:
        self.names = [str(number) for number in range(options.classes)]
        self.templates = [f"{number} {{c}}" for number in range(options.templates)]
        self.classes = F.normalize(torch.randn(options.classes, options.width, generator=generator), dim=1)
        noise = torch.randn(options.templates, options.width, generator=generator) / options.width**0.5
        self.features = (self.classes[:, None] + noise).flatten(0, 1)  # (C * T, D)
        prompts = [template.format(c=name) for name in self.names for template in self.templates]
        self.row = {prompt: row for row, prompt in enumerate(prompts)}

    def __call__(self, texts: list[str]) -> Tensor:
        return self.features[[self.row[text] for text in texts]]


def retrieval_case(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    owners = torch.arange(options.texts) * options.images // options.texts
    images = F.normalize(torch.randn(options.images, options.width, generator=generator), dim=1)
    noise = torch.randn(options.texts, options.width, generator=generator) * 8 / options.width**0.5
    return images, F.normalize(images[owners] + noise, dim=1), owners


def zero_shot_case(options: argparse.Namespace) -> tuple[Tensor, Prompts, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(options, generator)
    labels = torch.arange(options.pictures) % options.classes
    noise = torch.randn(options.pictures, options.width, generator=generator) * 5 / options.width**0.5
    return F.normalize(prompts.classes[labels] + noise, dim=1), prompts, labels


def our_side(options: argparse.Namespace) -> Callable[[], Scores]:
    from altclip_train.evaluation.retrieval import retrieval_metrics, retrieval_outcome
    from altclip_train.evaluation.statistics import scores_and_intervals
    from altclip_train.evaluation.zero_shot import build_classifier, zero_shot_metrics, zero_shot_outcome

    intervals = options.side.endswith("intervals")
    if "retrieval" in options.side:
        case = retrieval_case(options)
        return lambda: scores_and_intervals(retrieval_outcome(*case))[0] if intervals else retrieval_metrics(*case)
    images, prompts, labels = zero_shot_case(options)
    if options.side == FLOOR:
        return lambda: products(images, prompts)

    def score() -> Scores:
        classifier = build_classifier(prompts, prompts.names, prompts.templates)
        if intervals:
            return scores_and_intervals(zero_shot_outcome(images, classifier, labels))[0]
        return zero_shot_metrics(images, classifier, labels)

    return score


def products(images: Tensor, prompts: Prompts) -> Scores:
    """What no way to score can leave out, a tile at a time."""
    from altclip_train.evaluation.ranks import MAX_SCORES
    from altclip_train.evaluation.zero_shot import PROMPTS_AT_ONCE

    texts = [template.format(c=name) for name in prompts.names for template in prompts.templates]
    for start in range(0, len(texts), PROMPTS_AT_ONCE):
        prompts(texts[start : start + PROMPTS_AT_ONCE])
    rows = max(1, MAX_SCORES // len(prompts.classes))
    buffer = torch.empty(rows, len(prompts.classes))
    for part in images.split(rows):
        torch.mm(part, prompts.classes.T, out=buffer[: len(part)])
    return {}


def peer_side(options: argparse.Namespace) -> Callable[[], Scores]:
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    model = SimpleNamespace(encode_image=lambda x: x, encode_text=lambda x: x)
    if "retrieval" in options.side:
        images, texts, owners = retrieval_case(options)
        by_image = torch.arange(len(texts)).split(torch.bincount(owners, minlength=len(images)).tolist())
        starts = range(0, len(images), options.batch)
        loader = [
            (images[s : s + options.batch], [rows.tolist() for rows in by_image[s : s + options.batch]]) for s in starts
        ]
        k_list = [k for k in (1, 5, 10) if k <= len(images)]
        tokenizer = lambda rows: texts[torch.tensor(rows)]  # noqa: E731
        return lambda: zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=k_list)
    images, prompts, labels = zero_shot_case(options)
    # numpy 2.4 refuses its float(array of one number); the name in the module goes before the builtin one.
    zeroshot_classification.__dict__["float"] = lambda value: value.item()

    class Loader(list[Any]):
        dataset = SimpleNamespace(classes=prompts.names)

    loader = Loader(zip(images.split(options.batch), labels.split(options.batch), strict=True))
    evaluate, names, templates = zeroshot_classification.evaluate, prompts.names, prompts.templates
    return lambda: evaluate(model, loader, prompts, names, templates, "cpu", amp=False)


def side(options: argparse.Namespace) -> None:
    def prepare() -> sides.Round:
        sides.models_follow()
        score = our_side(options) if options.side in OURS else peer_side(options)

        def once(_: int) -> Mapping[str, Any]:
            before = _resident("VmRSS")
            _forget_peak()
            with sides.timed() as seconds:
                scores = score()
            return {**seconds, "extra_bytes": max(_resident("VmHWM") - before, 1), "scores": _named(scores)}

        return once

    sides.serve(options, prepare)


def _named(scores: Scores) -> dict[str, float]:
    """Scores by our names."""
    found = {}
    for name, value in scores.items():
        kind, at, k = name.partition("@")
        found[f"{NAMES.get(kind, kind)}{at}{k}"] = value
    return found


def _resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `_forget_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5", encoding="utf-8")


def main() -> None:
    parser = sides.parser(__doc__)
    for name, default in {
        "images": 5000,
        "texts": 25_000,
        "pictures": 50_000,
        "classes": 1000,
        "templates": 80,
        "width": 512,
        "batch": 64,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    if options.side:
        return side(options)
    names = ("images", "texts", "pictures", "classes", "templates", "width", "batch")
    done = sides.take_turns(options, OURS, PEERS, [f"--{name}={getattr(options, name)}" for name in names])
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        own, peer = f"ours_{kind}", f"clip_benchmark_{kind}"
        rows += sides.faster(done, own, peer, AIM) + sides.faster(done, own, f"{own}_intervals")
        if peer in done:
            check_equal(done[own].first["scores"], done[peer].first["scores"])
            extra = zip(done[own].column("extra_bytes"), done[peer].column("extra_bytes"), strict=True)
            rows.append(
                sides.row(f"extra memory of {peer} / {own}", [theirs / mine for mine, theirs in extra], aim=AIM)
            )
    rows += sides.faster(done, FLOOR, "clip_benchmark_zero_shot") + sides.faster(done, FLOOR, "ours_zero_shot")
    facts = {name: getattr(options, name) for name in names}
    return sides.report(options, "Metrics from precomputed features", rows, done, per_round=1, unit="runs", **facts)


def check_equal(ours: Scores, theirs: Scores) -> None:
    for metric, value in theirs.items():
        assert abs(ours[metric] - value) <= 1e-6, f"{metric}: {ours[metric]}, {value}"


if __name__ == "__main__":
    main()

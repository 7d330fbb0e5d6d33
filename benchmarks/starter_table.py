"""The table of the README: the teacher CLIP, after stage one, after stage two, on the starter data.

    python benchmarks/starter_table.py --seeds 0 1 2

Trains both stages for each seed by the commands that a user types, evaluates every model on the test splits,
and writes results.json and table.md below --outputs. What is there already is not made again, so that an
interrupted call goes on where it stopped. Training itself looks at the validation splits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese"}
ROWS = [
    ("starter_retrieval", "text_to_image_R@1", "retrieval, text to image R@1"),
    ("starter_retrieval", "image_to_text_R@1", "retrieval, image to text R@1"),
    ("starter_zero_shot", "top1", "zero-shot top-1, held-out renders"),
    ("starter_zero_shot_unseen_drawing", "top1", "zero-shot top-1, unseen drawing"),
    ("starter_zero_shot_unseen_concept", "top1", "zero-shot top-1, unseen concept"),
]
BENCHMARKS = list(dict.fromkeys(benchmark for benchmark, _, _ in ROWS))
CHANCE = {
    "starter_retrieval/text_to_image_R@1": "1 of 1,000",
    "starter_retrieval/image_to_text_R@1": "about 1 of 1,000",
    "starter_zero_shot/top1": "1 of 600",
    "starter_zero_shot_unseen_drawing/top1": "1 of 600",
    "starter_zero_shot_unseen_concept/top1": "1 of 60",
}


class Score(NamedTuple):
    """A share, and the 95 % interval over the pictures of the split."""

    value: float
    low: float
    high: float


Scores = dict[str, Score]  # by "<benchmark>/<language>/<metric>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs" / "starter_table")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("overrides", nargs="*", help="further overrides of both stages, such as starter=DIR")
    options = parser.parse_args()
    options.outputs.mkdir(parents=True, exist_ok=True)

    teacher = evaluate(ROOT / "data" / "starter_clip", options)
    stages: dict[str, list[Scores]] = {"teacher": [], "contrastive": []}
    seconds: dict[str, list[float]] = {"teacher": [], "contrastive": []}
    for seed in options.seeds:
        start: Path | None = None
        for stage in stages:
            model, took = train(stage, seed, start, options)
            stages[stage].append(evaluate(model, options))
            seconds[stage].append(took)
            start = model
    columns = {
        "teacher CLIP": [teacher],
        "after stage one": stages["teacher"],
        "after stage two": stages["contrastive"],
    }
    document = {"environment": environment(), "seeds": options.seeds, "split": options.split}
    document |= {"seconds": seconds, "scores": columns}
    (options.outputs / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = table(columns, seconds, options)
    (options.outputs / "table.md").write_text(text, encoding="utf-8")
    print(text)


def train(stage: str, seed: int, start: Path | None, options: argparse.Namespace) -> tuple[Path, float]:
    """Model directory of a finished run of one stage, and the seconds that its command took."""
    run = options.outputs / f"{stage}_seed{seed}"
    record = run / "seconds.json"
    if not record.exists():
        began = time.perf_counter()
        overrides = [f"stage={stage}", f"seed={seed}", f"hydra.run.dir={run}", *options.overrides]
        python("train.py", *overrides, *([f"start={start}"] if start is not None else []))
        record.write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")
    return run / "model", json.loads(record.read_text(encoding="utf-8"))


def evaluate(model: Path, options: argparse.Namespace) -> Scores:
    """Every score of a model directory, by the evaluation command."""
    output = options.outputs / "evaluations" / f"{model.parent.name}_{model.name}_{options.split}"
    if not (output / "results.json").exists():
        benchmarks = [b for b in BENCHMARKS if options.split == "test" or "unseen" not in b]
        splits = [f"eval.{b}.split={options.split}" for b in benchmarks]
        starter = [o for o in options.overrides if o.startswith("starter=")]
        arguments = [f"checkpoint={model}", f"eval=[{','.join(benchmarks)}]", f"hydra.run.dir={output}"]
        python("-m", "altclip_train.evaluate", *arguments, *splits, *starter)
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))["results"]
    return {
        f"{result['benchmark']}/{result['language']}/{name}": Score(value, *result["intervals"][name])
        for result in results
        for name, value in result["metrics"].items()
    }


def python(*arguments: str) -> None:
    print("$ python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def table(columns: dict[str, list[Scores]], seconds: dict[str, list[float]], options: argparse.Namespace) -> str:
    lines = [
        f"| {options.split} split, % | language | {' | '.join(columns)} | chance |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for benchmark, metric, title in ROWS:
        for code, language in LANGUAGES.items():
            name = f"{benchmark}/{code}/{metric}"
            cells = [spread([scores[name] for scores in column if name in scores]) for column in columns.values()]
            if any(cells):
                lines.append(f"| {title} | {language} | {' | '.join(cells)} | {CHANCE[f'{benchmark}/{metric}']} |")
    times = ", ".join(f"{stage} {statistics.median(taken) / 60:.1f} min" for stage, taken in seconds.items())
    where = environment()
    lines += ["", f"Mean ± standard deviation over seeds {', '.join(map(str, options.seeds))}; in parentheses"]
    lines += [f"the 95 % interval over pictures, averaged over seeds. Median times: {times}."]
    lines += [f"{where['machine']}; {where['versions']}; commit {where['commit']}.", ""]
    return "\n".join(lines)


def spread(scores: list[Score]) -> str:
    """Mean ± standard deviation (interval), in percent."""
    if not scores:
        return ""
    value, low, high = (100 * statistics.mean(part) for part in zip(*scores, strict=True))
    deviation = f" ± {100 * statistics.stdev(score.value for score in scores):.1f}" if len(scores) > 1 else ""
    return f"{value:.1f}{deviation} ({low:.1f}–{high:.1f})"


def environment() -> dict[str, str]:
    import os

    import torch

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    model = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "CPU")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {model}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    return {
        "machine": f"{device}, {platform.system()}",
        "versions": f"Python {platform.python_version()}, {packages}",
        "commit": git.stdout.strip() or "unknown",
    }


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


if __name__ == "__main__":
    main()

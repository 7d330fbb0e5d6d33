"""Make data/starter_clip from a finished run of experiment=starter_clip: fp16 weights and a model card.

python train.py stage=contrastive experiment=starter_clip
python -m altclip_train.evaluate checkpoint=outputs/starter_clip/latest/model
python benchmarks/ship_starter_clip.py outputs/starter_clip/latest outputs/evaluate/DATE/results.json --minutes 40
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from altclip_train.models.weights import save_tensors

ROOT = Path(__file__).resolve().parents[1]

CARD = """---
license: cc-by-sa-4.0
language: en
---
# starter_clip: a small English CLIP of emoji pictures

The teacher of the starter data: CLIP ViT (64 px, patch 16, width 256, 4 layers) with a text tower of 3 layers,
trained from random weights on the starter pictures and their English captions alone. It knows emoji drawings and
nothing else; it exists so that both stages of altclip_train can be run in minutes on a CPU.

Made by `{command}`, seed {seed}, {steps} steps in {minutes:.0f} minutes on {machine}. {note}
Stored as fp16 ({size:.1f} MB).

| test split of the starter data | English |
|---|---|
{rows}

Pictures: [OpenMoji](https://openmoji.org) (CC-BY-SA-4.0), [Twemoji](https://github.com/jdecked/twemoji) (CC-BY-4.0),
[Noto Emoji](https://fonts.google.com/noto) (OFL-1.1). Names: Unicode CLDR (Unicode License v3).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of experiment=starter_clip")
    parser.add_argument("results", type=Path, help="results.json of its evaluation")
    parser.add_argument("--machine", default="2 CPU cores")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--note", default="", help="what else the reader of the card must know")
    parser.add_argument("--command", default="python train.py stage=contrastive experiment=starter_clip")
    options = parser.parse_args()

    target = ROOT / "data" / "starter_clip"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(options.run / "model", target)
    weights = load_file(target / "model.safetensors")
    halves = {name: tensor.half() if tensor.ndim else tensor for name, tensor in weights.items()}
    save_tensors(halves, target / "model.safetensors", metadata={"format": "pt"})
    rows = [
        f"| {result['benchmark']}, {name} | {100 * value:.1f} % |"
        for result in json.loads(options.results.read_text(encoding="utf-8"))["results"]
        for name, value in result["metrics"].items()
        if result["language"] == "en" and name in ("text_to_image_R@1", "image_to_text_R@1", "top1")
    ]
    metrics = (options.run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    card = CARD.format(
        command=options.command,
        seed=OmegaConf.load(options.run / "config.yaml")["seed"],
        steps=int(metrics[-1].split(",")[0]),
        minutes=options.minutes,
        machine=options.machine,
        note=options.note,
        size=sum(t.numel() * t.element_size() for t in halves.values()) / 1e6,
        rows="\n".join(rows),
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in halves.values())
    print(f"written: {target}")


if __name__ == "__main__":
    main()

"""Model directories cross over to version 4 of `transformers` and back, and give the numbers of our models.

Version 4 cannot be installed beside version 5, so it runs in a process of its own, from a folder made by
``pip install --target DIR --no-deps 'transformers<5' 'huggingface_hub<1' 'tokenizers<0.23'``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train import AltCLIPModel, AltCLIPProcessor
from altclip_train.models import CLIPModel
from altclip_train.processing import XLMRTokenizer
from tests.tiny_models import perturb, save_altclip
from tests.workspace import Workspace, environment

VERSION4 = os.environ.get("TRANSFORMERS_4")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not VERSION4, reason="TRANSFORMERS_4 names no folder with version 4 of transformers"),
]
TEXTS = ["a red apple", "两只猫在桌子上，还有一条狗", "りんご <mask> ＡＢ", "x"]
SCRIPT = """
import sys, torch, transformers
from PIL import Image
assert transformers.__version__.startswith("4."), transformers.__version__
kind, directory, picture, result = sys.argv[1:]
model = getattr(transformers, kind + "Model").from_pretrained(directory).eval()
processor = getattr(transformers, kind + "Processor").from_pretrained(directory)
texts = sys.stdin.read().split("\\n")
inputs = processor(text=texts, images=Image.open(picture), return_tensors="pt", padding=True)
with torch.no_grad():
    output = model(**inputs)
values = {name: output[name] for name in ("logits_per_image", "text_embeds", "image_embeds")}
torch.save({**inputs, **values}, result)
model.save_pretrained(directory + "-again")
processor.save_pretrained(directory + "-again")
"""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def version4(kind: str, directory: Path, picture: Path) -> dict[str, torch.Tensor]:
    """Inputs and outputs of a directory in version 4, which also saves it again."""
    result = picture.with_suffix(".pt")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, str(directory), str(picture), str(result)],
        input="\n".join(TEXTS),
        env={**environment(), "PYTHONPATH": str(VERSION4), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "were not used" not in done.stderr
    assert "newly initialized" not in done.stderr
    return torch.load(result, weights_only=True)


def assert_equal(expected: dict[str, torch.Tensor], inputs: Any, output: Any) -> None:
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        torch.testing.assert_close(output[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved_by", ["us", "version 4"])
def test_altclip(saved_by: str, workspace: Workspace, tmp_path: Path, picture: Path) -> None:
    tokenizer = XLMRTokenizer.from_pretrained(workspace.starter / "tokenizer")
    directory = save_altclip(tmp_path / "altclip", tokenizer)
    expected = version4("AltCLIP", directory, picture)
    if saved_by == "version 4":
        directory = tmp_path / "altclip-again"
    model, processor = AltCLIPModel.from_pretrained(directory), AltCLIPProcessor.from_pretrained(directory)
    inputs = processor(text=TEXTS, images=Image.open(picture), return_tensors="pt", padding=True)
    with torch.no_grad():
        assert_equal(expected, inputs, model.eval()(**inputs))


def test_clip(workspace: Workspace, tmp_path: Path, picture: Path) -> None:
    directory = workspace.build_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(directory)
    perturb(model, scale=0.1)
    model.save_pretrained(directory)
    expected = version4("CLIP", directory, picture)
    again = CLIPModel.from_pretrained(tmp_path / "clip-again").eval()
    with torch.no_grad():
        output = again(expected["input_ids"], expected["pixel_values"], expected["attention_mask"])
    for name in ("logits_per_image", "text_embeds", "image_embeds"):
        torch.testing.assert_close(output[name], expected[name], rtol=0, atol=1e-5)

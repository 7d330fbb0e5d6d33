"""Models of `transformers` on our benchmarks: tiny random ones, saved and evaluated by the command's own function."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from altclip_train.evaluate import evaluate, load_encoder
from altclip_train.evaluation import RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.other_models import OtherEncoder, library_of, load_other
from tests.parity.references import CLIP_TEXT, VISION, XLMR, perturb
from tests.workspace import REPOSITORY, Workspace

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
CLIP = REPOSITORY / "data" / "starter_clip"


def load(name: str | Path) -> OtherEncoder:
    library, directory = library_of(str(name))
    assert library == "transformers"
    return load_other(library, directory, batch_size=5, device="cpu")


def pictures(count: int) -> list[Image.Image]:
    return [Image.effect_noise((70 + number, 50), 80).convert("RGB") for number in range(count)]


def test_clip_scores_the_same_through_transformers_and_through_ours(workspace: Workspace) -> None:
    benchmarks = {
        kind: benchmark(root=workspace.starter / "eval" / f"starter_{kind}", language="en")
        for kind, benchmark in (("retrieval", RetrievalBenchmark), ("zero_shot", ZeroShotBenchmark))
    }
    ours, theirs = (
        evaluate(checkpoint=name, benchmarks=benchmarks, batch_size=16, device="cpu")
        for name in (CLIP, f"transformers:{CLIP}")
    )
    assert [result.metrics for result in ours] == [result.metrics for result in theirs]


def test_features_of_a_clip_are_those_of_ours() -> None:
    texts = ["a cat", "a very long caption of a dog to the left of a red car " * 4, "two trees"] * 3
    ours, theirs = load_encoder(CLIP, batch_size=5, device="cpu"), load(f"transformers:{CLIP}")
    torch.testing.assert_close(theirs.encode_texts(texts), ours.encode_texts(texts), rtol=0, atol=1e-5)
    images = pictures(7)
    torch.testing.assert_close(theirs.encode_images(images), ours.encode_images(images), rtol=0, atol=2e-5)


def chinese_clip(folder: Path) -> Path:
    """BERT's text tower, pictures squashed, 52 tokens."""
    text = {**XLMR, "vocab_size": 30, "max_position_embeddings": 60, "pad_token_id": 0, "type_vocab_size": 2}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    model = transformers.ChineseCLIPModel(config).eval()
    perturb(model)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"一只猫狗的照片红车树"])
    )
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    settings = {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"height": 18, "width": 18}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_center_crop": False}))
    return folder


def siglip(folder: Path) -> Path:
    """Texts padded to 64 tokens, whose last position is the pooled one."""
    text = {**CLIP_TEXT, "vocab_size": 4096, "max_position_embeddings": 64, "projection_size": 16}
    vision = {**VISION, "hidden_size": 16}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config).eval()
    perturb(model)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(CLIP / name, folder / name)
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 18, "width": 18}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("make", [chinese_clip, siglip])
def test_kinds_that_only_transformers_reads_are_found_by_their_configuration(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = load(make(tmp_path / "model"))
    texts, images = ["一只猫", "红车的照片", "狗", "树"], pictures(6)
    found, seen = encoder.encode_texts(texts), encoder.encode_images(images)
    for features in (found, seen):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    assert found.shape[1] == seen.shape[1]
    # One by one: neither the company in a batch nor its padding changes a feature.
    alone = torch.cat([encoder.encode_texts([text]) for text in texts])
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(seen, torch.cat([encoder.encode_images([image]) for image in images]), rtol=0, atol=1e-5)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint=transformers:.* has no config\.json"):
        load(f"transformers:{tmp_path}")
    with pytest.raises(ModuleNotFoundError, match="needs open_clip, which is not installed: pip install open_clip_tor"):
        load_other("open_clip", "ViT-B-32", batch_size=5, device="cpu")

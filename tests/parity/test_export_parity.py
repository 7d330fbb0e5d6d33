"""What `altclip export` writes, read by `transformers` and onnxruntime, gives the numbers of our model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from altclip_train.export import export
from altclip_train.export import onnx as onnx_format
from altclip_train.models import CLIPModel, load_model
from altclip_train.processing import XLMRTokenizer
from tests.tiny_models import perturb, save_altclip
from tests.workspace import Workspace

pytestmark = pytest.mark.parity

TEXTS = ["a red apple", "两只猫在桌子上，还有一条狗", "りんご", ""]
CLASSES = {"altclip": transformers.AltCLIPModel, "clip": transformers.CLIPModel}
PROCESSORS = {"altclip": transformers.AltCLIPProcessor, "clip": transformers.CLIPProcessor}


@pytest.fixture(scope="module", params=["altclip", "clip"])
def directory(request: pytest.FixtureRequest, workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_directory(request.param, workspace, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def altclip(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_directory("altclip", workspace, tmp_path_factory.mktemp("altclip"))


def make_directory(kind: str, workspace: Workspace, place: Path) -> Path:
    """A model directory of random numbers."""
    if kind == "altclip":
        return save_altclip(place, XLMRTokenizer.from_pretrained(workspace.starter / "tokenizer"))
    model = CLIPModel.from_pretrained(workspace.build_clip(place))
    perturb(model, scale=0.1)
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def exported(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(directory, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def onnx_files(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(directory, tmp_path_factory.mktemp("onnx") / "model", format="onnx")


def kind(directory: Path) -> str:
    return json.loads((directory / "config.json").read_text())["model_type"]


def theirs(directory: Path) -> Any:
    return CLASSES[kind(directory)].from_pretrained(directory).eval()


def inputs_of_transformers(directory: Path) -> Any:
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (50, 40, 3), dtype=np.uint8)) for _ in range(3)]
    processor = PROCESSORS[kind(directory)].from_pretrained(directory)
    return processor(text=TEXTS, images=pictures, return_tensors="pt", padding=True)


def largest_difference(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


def test_transformers_gives_the_same_numbers(directory: Path, exported: Path):
    inputs = inputs_of_transformers(exported)
    ours, other = load_model(directory), theirs(exported)
    with torch.no_grad():
        expected, found = ours(**inputs), other(**inputs)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        assert largest_difference(found[name], expected[name]) <= 1e-5, name


def test_transformers_misses_and_ignores_no_tensor(directory: Path, exported: Path):
    _, report = CLASSES[kind(directory)].from_pretrained(exported, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_round_trip_through_transformers_keeps_every_bit(directory: Path, exported: Path, tmp_path: Path):
    theirs(exported).save_pretrained(tmp_path)
    old, new = load_model(directory).state_dict(), load_model(tmp_path).state_dict()
    assert old.keys() == new.keys()
    assert [name for name in old if not torch.equal(old[name], new[name])] == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_reads_the_dtype(directory: Path, tmp_path: Path, dtype: str):
    out = export(directory, tmp_path / "out", dtype=dtype)
    assert CLASSES[kind(directory)].from_pretrained(out, dtype="auto").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("library", ["altclip_train", "transformers"])
def test_code_of_the_card_runs(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str):
    code = code_of_the_card(exported)
    if library == "transformers":
        (imports,) = re.findall(r"by `(from transformers import \w+, \w+)`", (exported / "README.md").read_text())
        code = re.sub(r"^(from altclip_train.*\n)+", imports + "\n", code)
    names = run_code(code, tmp_path, monkeypatch)
    assert names["probabilities"].shape == (1, 2)
    assert float(names["probabilities"].detach().sum()) == pytest.approx(1)


def code_of_the_card(directory: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return code.replace('"DIR', f'"{directory}')


def run_code(code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Image.new("RGB", (60, 40), "red").save(place / "picture.jpg")
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_onnx_gives_the_features_of_transformers(directory: Path, onnx_files: Path):
    inputs, other = inputs_of_transformers(onnx_files), theirs(directory)
    with torch.no_grad():
        texts = other.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        images = other.get_image_features(pixel_values=inputs["pixel_values"])
    assert not inputs["attention_mask"].bool().all()  # padding is part of the test
    (found,) = session(onnx_files / "text.onnx").run(
        None, {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    )
    assert largest_difference(found, texts.pooler_output) <= 1e-5
    (found,) = session(onnx_files / "image.onnx").run(None, {"pixel_values": inputs["pixel_values"].numpy()})
    assert largest_difference(found, images.pooler_output) <= 1e-5


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def test_onnx_files_say_what_they_are(directory: Path, onnx_files: Path):
    text, image = session(onnx_files / "text.onnx"), session(onnx_files / "image.onnx")
    assert [(one.name, one.shape) for one in text.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    assert [(one.name, one.shape) for one in image.get_inputs()] == [("pixel_values", ["batch", 3, 32, 32])]
    assert [one.name for one in (*text.get_outputs(), *image.get_outputs())] == ["text_features", "image_features"]
    facts = image.get_modelmeta().custom_metadata_map
    assert facts["output"] == "projected, not normalised"
    scale = load_model(directory).logit_scale.exp()
    assert float(facts["logit_scale_exp"]) == pytest.approx(float(scale.detach()))
    assert [entry.version for entry in onnx.load(onnx_files / "text.onnx").opset_import if not entry.domain] == [18]
    assert "**not normalised**" in (onnx_files / "README.md").read_text(encoding="utf-8")


def test_code_of_the_onnx_card_gives_the_logits(
    directory: Path, onnx_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = run_code(code_of_the_card(onnx_files), tmp_path, monkeypatch)
    with torch.no_grad():
        expected = load_model(directory)(**{name: torch.as_tensor(value) for name, value in names["inputs"].items()})
    assert largest_difference(names["logits_per_image"], expected.logits_per_image) <= 1e-3  # the scale is rounded


def test_large_towers_lie_beside_their_graph(altclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_format, "LARGEST_FILE", 0)
    moved = export(altclip, tmp_path / "out", format="onnx").rename(tmp_path / "moved")
    embeddings = load_model(altclip).text_model.get_submodule("embeddings.word_embeddings").weight
    assert (moved / "text.onnx.data").stat().st_size > embeddings.nbytes
    session(moved / "text.onnx")  # finds its weights wherever the directory is


def test_onnx_that_disagrees_leaves_nothing(altclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = onnx_format.TextFeatures.forward

    def wrong(tower: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # As if the exporter lost the mask: what is traced differs from what is computed.
        traced = torch.compiler.is_compiling()
        return right(tower, input_ids, torch.ones_like(attention_mask) if traced else attention_mask)

    monkeypatch.setattr(onnx_format.TextFeatures, "forward", wrong)
    with pytest.raises(ValueError, match=r"text\.onnx is wrong: for input_ids \(\d+, \d+\)"):
        export(altclip, tmp_path / "out", format="onnx")
    assert list(tmp_path.iterdir()) == []

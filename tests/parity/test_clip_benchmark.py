"""Metrics beside CLIP_benchmark's own functions, out of its wheel.

    pip download --no-deps -d FOLDER clip-benchmark==1.6.2
    PROMPT_WHEELS=FOLDER pytest -m parity tests/parity/test_clip_benchmark.py

Where scores are equal it takes what ``topk`` returns; there the cases below have no ties among the best, or are
compared after our rule is written into the scores.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zipimport import zipimporter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from altclip_train.evaluate import load_encoder
from altclip_train.evaluation import Encoder, RetrievalBenchmark, build_classifier, retrieval_metrics, zero_shot_metrics
from altclip_train.evaluation.zero_shot import multi_label_metrics
from tests.workspace import REPOSITORY, Workspace

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("PROMPT_WHEELS" not in os.environ, reason="PROMPT_WHEELS=FOLDER names no folder of wheels"),
]


@pytest.fixture(scope="module")
def peer() -> SimpleNamespace:
    """Its two modules of metrics. They import scikit-learn for a report that nothing here asks for."""
    absent = {"sklearn": ModuleType("sklearn"), "sklearn.metrics": ModuleType("sklearn.metrics")}
    for name in ("classification_report", "balanced_accuracy_score"):
        setattr(absent["sklearn.metrics"], name, None)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in absent.items():
            patch.setitem(sys.modules, name, module)
        found = {name: load(name) for name in ("zeroshot_retrieval", "zeroshot_classification")}
    # numpy 2.4 refuses its float(array of one number); the name in the module goes before the builtin one.
    found["zeroshot_classification"].__dict__["float"] = lambda value: value.item()
    return SimpleNamespace(retrieval=found["zeroshot_retrieval"], classification=found["zeroshot_classification"])


def load(name: str) -> ModuleType:
    (wheel,) = Path(os.environ["PROMPT_WHEELS"]).glob("clip_benchmark-1.6.2-*.whl")
    spec = zipimporter(f"{wheel}/clip_benchmark/metrics").find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer_recalls(peer: SimpleNamespace, images: Tensor, texts: Tensor, owners: Tensor, k_list: list[int]) -> Any:
    """What its evaluate() returns for towers that return these features."""
    by_image = [(owners == image).nonzero().flatten().tolist() for image in range(len(images))]
    batches = [(images[start : start + 16], by_image[start : start + 16]) for start in range(0, len(images), 16)]
    model = SimpleNamespace(encode_image=lambda x: x, encode_text=lambda x: x)
    loader = [(pictures, rows) for pictures, rows in batches]

    def tokenizer(rows: list[int]) -> Tensor:
        return texts[torch.tensor(rows)]

    found = peer.retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=k_list)
    directions = {"image_retrieval_recall": "text_to_image_R", "text_retrieval_recall": "image_to_text_R"}
    return {f"{directions[name.partition('@')[0]]}@{name.partition('@')[2]}": value for name, value in found.items()}


def random_case(texts: int, images: int, width: int, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised features; every image has a text, the others are spread unevenly."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=generator)])
    owners = owners.sort().values  # its loader counts texts picture by picture
    image_features = F.normalize(torch.randn(images, width, generator=generator), dim=1)
    noise = torch.randn(texts, width, generator=generator)
    return image_features, F.normalize(image_features[owners] + noise / width**0.5, dim=1), owners


@pytest.mark.parametrize(("texts", "images", "width"), [(400, 150, 8), (2000, 300, 64), (150, 150, 32)])
def test_recalls_equal(peer: SimpleNamespace, texts: int, images: int, width: int) -> None:
    case = random_case(texts, images, width)
    ours = retrieval_metrics(*case)
    for name, value in peer_recalls(peer, *case, [1, 5, 10]).items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_recalls_equal_with_duplicates(peer: SimpleNamespace) -> None:
    images, texts, owners = random_case(400, 150, 16)
    texts[7::10] = texts[3]  # one caption on many pictures
    images[40:60] = images[20:40]  # pictures that are there twice
    ours = retrieval_metrics(images, texts, owners)
    scores, positive = texts.double() @ images.double().T, owners[:, None] == torch.arange(150)
    for direction, theirs, mask in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
        # Our rule, written into the peer's scores: what comes later is worse, by less than any other difference.
        ordered = theirs - 1e-9 * torch.arange(theirs.shape[1])
        for k in (1, 5, 10):
            found = (peer.retrieval.recall_at_k(ordered, mask, k) > 0).float().mean().item()
            assert ours[f"{direction}_R@{k}"] == pytest.approx(found, abs=1e-6)


class Recorder:
    """An encoder that keeps what it returned."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode_images(self, *arguments: Any, **named: Any) -> Tensor:
        self.images = self.encoder.encode_images(*arguments, **named)
        return self.images

    def encode_texts(self, texts: list[str]) -> Tensor:
        self.texts = self.encoder.encode_texts(texts)
        return self.texts


def test_recalls_equal_on_features_of_a_trained_model(peer: SimpleNamespace, workspace: Workspace) -> None:
    model = REPOSITORY / "data" / "starter_clip"
    recorder: Any = Recorder(load_encoder(model, batch_size=64, device="cpu"))
    benchmark = RetrievalBenchmark(root=workspace.starter / "eval" / "starter_retrieval", language="en")
    (result,) = benchmark.evaluate(recorder)
    owners = result.outcome.text_to_image
    for name, value in peer_recalls(peer, recorder.images, recorder.texts, owners, [1, 5]).items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-6), name


def test_classifier_and_accuracy_equal(peer: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(3)
    prompts = {f"{place} {name}": i for i, (name, place) in enumerate((n, p) for n in range(40) for p in "abc")}
    features = torch.randn(len(prompts), 24, generator=generator)

    def encode(texts: list[str]) -> Tensor:
        return features[[prompts[text] for text in texts]]

    names, templates = [str(name) for name in range(40)], [f"{place} {{c}}" for place in "abc"]
    model = SimpleNamespace(encode_text=lambda ids: features[ids])

    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([prompts[text] for text in texts])

    theirs = peer.classification.zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=False)  # (D, C)
    ours = build_classifier(encode, names, templates)
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-6)
    labels = torch.randint(40, (500,), generator=generator)
    images = F.normalize(ours[labels] + 0.3 * torch.randn(500, 24, generator=generator), dim=1)
    top1, top5 = peer.classification.accuracy(100 * images @ theirs, labels, topk=(1, 5))
    metrics = zero_shot_metrics(images, ours, labels)
    assert (metrics["top1"], metrics["top5"]) == (pytest.approx(top1, abs=1e-6), pytest.approx(top5, abs=1e-6))


def test_multi_label_precision_equals(peer: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(4)
    images, classifier = torch.randn(300, 16, generator=generator), torch.randn(12, 16, generator=generator)
    targets = torch.rand(300, 12, generator=generator) < 0.2
    theirs = peer.classification.average_precision_per_class(images @ classifier.T, targets.long())
    ours = multi_label_metrics(images, classifier, targets)["mAP"]
    assert ours == pytest.approx(theirs.mean().item(), abs=1e-6)

"""Ranks share an evaluation: each sample is encoded once, and the numbers are those of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from altclip_train.evaluate import load_encoder
from altclip_train.evaluation import RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.encoder import AcrossRanks
from tests.distributed.processes import run_on_ranks
from tests.unit.test_benchmarks import ColourEncoder, picture, retrieval_folder, write_split, zero_shot_folder
from tests.workspace import REPOSITORY, Workspace

pytestmark = pytest.mark.distributed


class Counter(ColourEncoder):
    """Notes the texts, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded_texts: list[str] = []

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.encoded_texts += texts
        return super().encode_texts(texts)


def evaluate_colours(rank: int, folder: str) -> dict[str, Any]:  # noqa: ARG001
    own: Any = Counter()
    results = [
        *RetrievalBenchmark(root=Path(folder) / "retrieval", language=["en", "zh"]).evaluate(AcrossRanks(own)),
        *ZeroShotBenchmark(root=Path(folder) / "zero_shot", language=["en", "zh"]).evaluate(AcrossRanks(own)),
    ]
    return {
        "results": [result.to_dict() for result in results],
        "pictures": own.encoded_pictures,
        "texts": own.encoded_texts,
    }


# Five ranks are more than there are pictures.
@pytest.mark.parametrize("ranks", [2, 5])
def test_each_sample_is_encoded_once_and_numbers_are_those_of_one_rank(tmp_path: Path, ranks: int) -> None:
    retrieval_folder(tmp_path / "retrieval")
    zero_shot_folder(tmp_path / "zero_shot")
    one = evaluate_colours(0, str(tmp_path))
    found = run_on_ranks(evaluate_colours, ranks, tmp_path, str(tmp_path))
    for share in found:
        assert share["results"] == one["results"]
    assert sum(share["pictures"] for share in found) == one["pictures"] == 3 + 4
    assert sorted(text for share in found for text in share["texts"]) == sorted(one["texts"])


def evaluate_damaged(rank: int, folder: str) -> str:  # noqa: ARG001
    own: Any = Counter()
    try:
        ZeroShotBenchmark(root=Path(folder), language="en", split="val").evaluate(AcrossRanks(own))
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def test_a_damaged_picture_stops_every_rank_with_its_name(tmp_path: Path) -> None:
    samples = [{"png": picture(0), "cls": b"0"}, {"png": picture(150)[:40], "cls": b"0"}]
    write_split(zero_shot_folder(tmp_path) / "val", [samples])
    for message in run_on_ranks(evaluate_damaged, 2, tmp_path, str(tmp_path)):
        assert "s0000001" in message


def evaluate_model(rank: int, root: str) -> list[dict[str, Any]]:  # noqa: ARG001
    encoder = load_encoder(REPOSITORY / "data" / "starter_clip", batch_size=7, device="cpu")
    benchmark = RetrievalBenchmark(root=root, language="en")
    return [result.to_dict() for result in benchmark.evaluate(AcrossRanks(encoder))]


def test_a_model_scores_the_same_on_two_ranks(workspace: Workspace, tmp_path: Path) -> None:
    root = str(workspace.starter / "eval" / "starter_retrieval")
    one = evaluate_model(0, root)
    for found in run_on_ranks(evaluate_model, 2, tmp_path, root):
        assert found == one

"""Two models on the same samples: what changed, what is refused, and what is read back from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from altclip_train.cli import main
from altclip_train.evaluation import BenchmarkResult, compare, read_results, write_results
from altclip_train.evaluation.results import write_csv, write_samples
from altclip_train.evaluation.retrieval import RetrievalOutcome
from altclip_train.evaluation.zero_shot import MultiLabelOutcome, ZeroShotOutcome


def retrieval(ranks: list[int], **changes: Any) -> BenchmarkResult:
    """Two pictures with two captions each, whose pictures rank as given."""
    texts = torch.tensor(ranks)
    outcome = RetrievalOutcome(
        image_ranks=texts.view(2, 2).amin(1),
        text_ranks=texts,
        text_to_image=torch.tensor([0, 0, 1, 1]),
        average_precision=torch.tensor([0.25, 0.5], dtype=torch.float64),
    )
    fields: dict[str, Any] = {
        "benchmark": "coco_cn",
        "language": "zh",
        "protocol": "coco_cn_1053",
        "description": "any positive",
        "counts": {"images": 2, "texts": 4},
        "data_sha256": "ab",
        "pictures": ["p0", "p1"],
        "texts": ["猫", "一只猫", "狗", "一只狗"],
    }
    return BenchmarkResult.of(outcome, **{**fields, **changes})


def zero_shot(predictions: list[int], labels: list[int]) -> BenchmarkResult:
    ranks = [int(p != label) for p, label in zip(predictions, labels, strict=True)]
    outcome = ZeroShotOutcome(
        ranks=torch.tensor(ranks), labels=torch.tensor(labels), predictions=torch.tensor(predictions)
    )
    return BenchmarkResult.of(
        outcome,
        benchmark="imagenet_cn",
        language="zh",
        protocol="wukong",
        description="",
        counts={},
        data_sha256="cd",
        pictures=[f"p{i}" for i in range(len(labels))],
        texts=["猫", "狗", "鱼"],
    )


def write(directory: Path, result: BenchmarkResult) -> Path:
    write_results(directory / "results.json", directory.name, [result])
    write_samples(directory / "samples.json", [result])
    return directory


def test_changed_texts_are_named() -> None:
    (found,) = compare([retrieval([0, 3, 1, 0])], [retrieval([2, 3, 0, 0])])
    assert found.lost == ["p0: 猫: rank 1, now 3"]
    assert found.gained == ["p1: 狗: rank 2, now 1"]
    # Of the pictures, the first found a text of its own at once in both models, the other only in the first.
    assert found.pictures is not None
    assert (found.pictures.lost, found.pictures.gained) == (1, 0)
    change = found.differences["image_to_text_R@1"]
    assert (change.first, change.second) == (1, 0.5)


def test_changed_pictures_are_named_with_what_they_were_taken_for() -> None:
    (found,) = compare([zero_shot([0, 1, 0], [0, 1, 2])], [zero_shot([0, 2, 2], [0, 1, 2])])
    assert found.lost == ["p1: 狗, taken for 狗, now 鱼"]
    assert found.gained == ["p2: 鱼, taken for 猫, now 鱼"]
    assert found.differences["top1"].p_value > 0.5


@pytest.mark.parametrize(("field", "value"), [("data_sha256", "ef"), ("protocol", "coco_cn_5000")])
def test_other_data_or_protocol_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"coco_cn/zh cannot be compared: {field} is .* in one and {value} in the oth"):
        compare([retrieval([0, 0, 0, 0])], [retrieval([0, 0, 0, 0], **{field: value})])


def test_models_without_a_common_benchmark_are_refused() -> None:
    with pytest.raises(ValueError, match="share no benchmark: one has coco_cn/zh, the other coco_cn/en"):
        compare([retrieval([0, 0, 0, 0])], [retrieval([0, 0, 0, 0], language="en")])


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    targets = torch.tensor([[True, False], [True, True]])
    labels = MultiLabelOutcome(logits=torch.tensor([[0.25, 0.5], [0.75, 0.1]]), targets=targets)
    voc = BenchmarkResult.of(
        labels, benchmark="voc", language="zh", protocol="generic", description="", counts={}, data_sha256="ef"
    )
    for number, result in enumerate([retrieval([0, 3, 1, 0]), zero_shot([0, 1], [0, 2]), voc]):
        checkpoint, (again,) = read_results(write(tmp_path / str(number), result))
        assert checkpoint == str(number)
        assert again.to_dict() == result.to_dict()
        (found,) = compare([result], [again])
        assert all(change.first == change.second for change in found.differences.values())
        assert not found.lost + found.gained


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no results\.json; pass a directory that"):
        read_results(tmp_path)
    write(tmp_path, retrieval([0, 0, 0, 0]))
    (tmp_path / "samples.json").write_text('{"samples": [{}]}')
    with pytest.raises(ValueError, match="do not fit together"):
        read_results(tmp_path)


def test_csv_has_a_line_for_each_score(tmp_path: Path) -> None:
    result = zero_shot([0, 1], [0, 2])
    lines = write_csv(tmp_path / "results.csv", [result]).read_text().splitlines()
    assert lines[0] == "benchmark,language,protocol,metric,value,low,high,data_sha256"
    assert lines[1] == "imagenet_cn,zh,wukong,top1,0.5,0.0,1.0,cd"
    assert len(lines) == 1 + len(result.metrics)


def test_command_prints_tables_and_changes_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write(tmp_path / "a", retrieval([0, 3, 1, 0]))
    second = write(tmp_path / "b", retrieval([2, 3, 0, 0]))
    main(["compare", str(first), str(second), "--json", str(tmp_path / "comparison.json")])
    printed = capsys.readouterr().out
    assert "coco_cn/zh" in printed
    assert "lost p0: 猫: rank 1, now 3" in printed
    (entry,) = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["comparisons"]
    assert entry["differences"]["image_to_text_R@1"]["second"] == 0.5

"""The page of an evaluation: whole in one file, with pictures, both languages, and fair rows beside ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altclip_train import html
from altclip_train.evaluation import BenchmarkResult, RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.published import PUBLISHED, published_for
from altclip_train.evaluation.report import write_page
from tests.unit.test_benchmarks import ColourEncoder, retrieval_folder, zero_shot_folder


@pytest.fixture
def page(tmp_path: Path) -> str:
    benchmarks = {
        "retrieval": RetrievalBenchmark(root=retrieval_folder(tmp_path / "retrieval"), language=["en", "zh"]),
        "zero_shot": ZeroShotBenchmark(root=zero_shot_folder(tmp_path / "zero_shot"), language=["en", "zh"]),
    }
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    lines = ["step,train/loss,zero_shot/en/top1", "0,2.5,", "10,1.5,0.25", "20,1.0,0.5"]
    (model.parent / "metrics.csv").write_text("\n".join(lines))
    encoder: Any = ColourEncoder()
    results = [result for benchmark in benchmarks.values() for result in benchmark.evaluate(encoder)]
    file = write_page(tmp_path / "results.html", {"A": str(model)}, {"A": results}, benchmarks)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["results.html"]
    return file.read_text(encoding="utf-8")


def test_page_is_one_file_without_scripts(page: str) -> None:
    assert not re.findall(r"<script|<link|@import|https?://|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)


def test_page_shows_scores_with_their_intervals(page: str) -> None:
    assert "<td>75.0<small>" in page  # Chinese text to image
    assert "text→image R@1" in page


def test_right_pictures_are_framed_and_right_texts_marked(page: str) -> None:
    # Three queries in each language; each finds three pictures, one of which is right.
    assert len(re.findall(r'<img class="right"', page)) == 6
    assert '<span lang="zh">红色</span>' in page
    assert "<li class=right>棕色</li>" in page


def test_page_shows_classes_and_curves(page: str) -> None:
    assert "red × brown: 0" in page  # in the matrix of so few classes
    assert "black / 黑: 100, 100" in page  # a point of the plot
    assert page.count("<polyline") == 2


def test_text_is_never_taken_for_markup() -> None:
    assert "<b>" not in html.paragraph("<b>") + html.heat_map([[1.0]], ["<b>"], ["<b>"])
    image = html.picture(Image.new("RGB", (40, 20)), size=20, title='"><b>')
    assert "<b>" not in image
    assert 'width="26" height="16"' in image  # twenty by ten pixels and the frame


def test_a_loss_that_is_not_finite_leaves_the_other_points() -> None:
    drawn = html.curves({"loss": [(0, 2.0), (1, 1.0), (2, float("nan")), (3, float("inf"))]}, x="step")
    (points,) = re.findall(r'<polyline points="([^"]*)"', drawn)
    assert len(points.split()) == 2
    assert "nan" not in drawn
    assert html.curves({"loss": [(0, float("nan"))]}, x="step") == ""


def make_result(**changes: Any) -> BenchmarkResult:
    fields: dict[str, Any] = {
        "benchmark": "coco_cn",
        "language": "zh",
        "protocol": "coco_cn_1053",
        "description": "",
        "metrics": {"text_to_image_R@1": 0.6},
        "counts": {"images": 1000, "texts": 1053},
        "data_sha256": "ab",
    }
    return BenchmarkResult(**{**fields, **changes})


def test_published_rows_are_compared_only_where_protocol_and_counts_agree() -> None:
    rows = published_for(make_result())
    assert {row.obstacle(make_result()) for row in rows if row.protocol == "coco_cn_1053"} == {""}
    (other,) = {row.obstacle(make_result()) for row in rows if row.protocol == "coco_cn_5000"}
    assert other == "protocol coco_cn_5000 there, coco_cn_1053 here"
    short = make_result(counts={"images": 999, "texts": 1053})
    assert "1,000 images, 1,053 texts there, 999 images" in rows[0].obstacle(short)
    assert "coco_cn_1053_subset here" in rows[0].obstacle(make_result(protocol="coco_cn_1053_subset"))
    assert published_for(make_result(language="en")) == []


def test_published_scores_are_shares_and_means_are_those_of_their_recalls() -> None:
    for row in PUBLISHED:
        assert all(0 < value < 1 for value in row.metrics.values())
    altclip = next(row for row in PUBLISHED if (row.model, row.protocol) == ("AltCLIP", "coco_cn_1053"))
    assert altclip.metrics["mean_recall"] == pytest.approx(0.820, abs=5e-4)  # as published

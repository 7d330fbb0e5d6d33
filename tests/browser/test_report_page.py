"""The report of a run in a real browser, from its file."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import pytest

from altclip_train.report.page import write_comparison
from tests.workspace import TrainedRun, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# Every picture is decoded, and every plot has a size on the page.
PICTURES = "() => [...document.images].map(image => image.complete && image.naturalWidth > 0)"
PLOTS = "() => [...document.querySelectorAll('svg')].map(plot => plot.querySelector('polyline,circle').getBBox().width)"


@pytest.fixture(scope="module")
def report(workspace: Workspace) -> Path:
    with chdir(workspace.root):  # so that the page speaks of `clip`, wherever the tests run
        return trained(workspace).directory / "report.html"


def trained(workspace: Workspace) -> TrainedRun:
    return workspace.train(
        "stage=contrastive",
        "clip=clip",
        "start=clip",
        "data.languages=[zh,en]",
        "eval=[starter_retrieval]",
        "trainer.max_epochs=-1",
        "trainer.max_steps=40",
        "callbacks.report.every_n_seconds=600",
        directory=workspace.root / "outputs" / "contrastive" / "2026-01-01_12-00-00",
    )


def test_report_shows_plots_pictures_and_chinese_without_errors(visit, report: Path):
    seen = visit(report.as_uri())
    assert seen.page.title().startswith("Run ")
    widths = seen.page.evaluate(PLOTS)
    assert len(widths) >= 5
    assert all(width > 0 for width in widths)
    pictures = seen.page.evaluate(PICTURES)
    assert len(pictures) == 24
    assert all(pictures)
    chinese = seen.page.locator('figcaption span[lang="zh"]').first
    assert any("\u4e00" <= letter <= "\u9fff" for letter in chinese.inner_text())
    assert chinese.is_visible()
    assert seen.errors == []
    seen.picture("report")


def test_letters_of_chinese_are_drawn_and_not_boxes(visit, report: Path):
    seen = visit(report.as_uri())
    # A missing letter is drawn as one and the same box: two different letters then give the same picture.
    drawn = seen.page.evaluate(
        """() => ['猫', '狗'].map(letter => {
            const canvas = document.createElement('canvas').getContext('2d');
            canvas.font = getComputedStyle(document.body).font;
            canvas.fillText(letter, 10, 30);
            return [...canvas.getImageData(0, 0, 60, 60).data].join();
        })"""
    )
    assert drawn[0] != drawn[1]


def test_comparison_of_runs_opens_without_errors(visit, report: Path, tmp_path: Path):
    page = write_comparison([report.parent, report.parent], tmp_path / "comparison.html")
    seen = visit(page.as_uri())
    assert seen.page.locator("h2", has_text="Settings that differ").is_visible()
    assert all(width > 0 for width in seen.page.evaluate(PLOTS))
    assert seen.errors == []

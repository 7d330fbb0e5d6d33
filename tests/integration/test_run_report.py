"""The report of a run: one file that shows what it was made from, how it goes, and what it gives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import lightning as L
import pytest
from PIL import Image

from altclip_train.cli import main
from altclip_train.report.figures import DRAWN, figures
from tests.workspace import TrainedRun, Workspace

REPORT = ["callbacks.report.every_n_seconds=0"]


class Watch(L.Callback):
    """Waits in the last step until the report has seen an earlier one."""

    def __init__(self, *, directory: str) -> None:
        self.file = Path(directory) / "report.html"

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            assert "not finished, at step" in self.file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def teacher(workspace: Workspace) -> TrainedRun:
    texts = workspace.damaged_texts([3], 40)
    return workspace.train(
        "stage=teacher",
        f"data.parallel_texts=[{{urls: {texts}, languages: [en, zh]}}]",
        "data.max_bad_fraction=0.5",
        "trainer.max_steps=8",
        *REPORT,
    )


@pytest.fixture(scope="module")
def contrastive(workspace: Workspace, teacher: TrainedRun) -> TrainedRun:
    watch = "+callbacks.watch={_target_: tests.integration.test_run_report.Watch, "
    return workspace.train(
        "stage=contrastive",
        f"start={teacher.model}",
        "eval=[starter_retrieval]",
        "trainer.max_steps=8",
        f"{watch}directory: '${{hydra:runtime.output_dir}}'}}",
        *REPORT,
    )


def page(run: TrainedRun) -> str:
    return (run.directory / "report.html").read_text(encoding="utf-8")


def sections(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_page_is_one_file_without_scripts(contrastive: TrainedRun):
    text = page(contrastive)
    assert not re.findall(r"<script|<link|@import|url\(|https?://", text)
    assert all(source.startswith("data:image/webp;base64,") for source in re.findall(r'src="([^"]{0,30})', text))
    assert sections(text)[:2] == ["Curves", "Evaluation"]
    assert "finished after 8 steps" in text


def test_every_logged_metric_is_drawn_or_in_a_table(contrastive: TrainedRun):
    header = (contrastive.directory / "metrics.csv").read_text().partition("\n")[0].split(",")
    drawn = figures({name: [(0, 1.0), (1, 2.0)] for name in header})
    missing = set(header) - {name for lines in drawn.values() for name in lines}
    in_tables = {name for name in header if re.fullmatch(r"step|epoch|data/skipped.*|starter_retrieval/.*", name)}
    same = {name for name in header if name.startswith("lr-")}  # one line for all groups
    assert missing <= in_tables | same
    for title in ("Loss", "Learning rate", "logit_scale", "Samples per second", "Share of the time spent waiting"):
        assert f"<h3>{title}" in page(contrastive)
    with Image.open(contrastive.directory / "curves.png") as plots:
        assert plots.width > 800


def test_samples_are_those_of_the_training_order_with_their_chinese(contrastive: TrainedRun, workspace: Workspace):
    samples = map(json.loads, (contrastive.directory / "training_samples.jsonl").read_text().splitlines())
    keys = workspace.data("stage=contrastive", f"start={contrastive.model}").train_set.__getitems__(range(24)).keys
    found = {sample["key"]: sample["captions"]["zh"][0] for sample in samples}
    assert list(found) == list(dict.fromkeys(keys))
    text = page(contrastive)
    assert all(f'<span lang="zh">{caption}</span>' in text for caption in found.values())
    assert text.count("<figure><img") == 24


def test_parts_that_train_and_that_are_frozen_are_counted(contrastive: TrainedRun):
    counts = json.loads((contrastive.directory / "run.json").read_text())["parameters"]
    model = contrastive.stage.model
    assert sum(part["trainable"] + part["frozen"] for part in counts.values()) == model.num_parameters()
    assert {name for name, part in counts.items() if part["frozen"]} == {"vision_model", "visual_projection"}
    assert counts["logit_scale"] == {"trainable": 1, "frozen": 0}


def test_scores_bad_samples_and_the_command_are_shown(teacher: TrainedRun, contrastive: TrainedRun):
    assert re.search(r"starter_retrieval</td><td[^>]*>zh</td><td[^>]*>val</td>", page(contrastive))
    assert 'href="results.html"' in page(contrastive)
    assert (contrastive.directory / "results.html").is_file()
    assert "caption_json" in page(teacher)
    assert "python train.py" in page(teacher)
    assert "stage=teacher" in page(teacher)


def test_command_line_tool_writes_the_same_page_of_a_run_that_stopped(
    teacher: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "teacher" / "stopped"
    shutil.copytree(teacher.directory, run, ignore=shutil.ignore_patterns("model", "report.html", "curves.png"))
    with (run / "metrics.csv").open("a") as file:
        file.write("9,0.")  # cut short by a kill
    main(["report", str(run)])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "not finished, at step 8" in text
    assert [head for head in sections(text)] == sections(page(teacher))
    assert f"written to {run}/report.html" in capsys.readouterr().out


def test_comparison_shows_what_differs_and_both_curves(workspace: Workspace, contrastive: TrainedRun, tmp_path: Path):
    other = workspace.train(
        "stage=contrastive",
        f"start={contrastive.model}",
        "eval=[starter_retrieval]",
        "stage.optimizer.lr=1e-5",
        *REPORT,
    )
    target = tmp_path / "two.html"
    main(["report", str(contrastive.directory), str(other.directory), "--output", str(target)])
    text = target.read_text(encoding="utf-8")
    settings = text[text.index("Settings that differ") : text.index("<h2>Scores")]
    assert re.search(r"stage.optimizer.lr</td><td[^>]*>0.0003</td><td[^>]*>1e-05", settings)
    assert str(other.directory) not in settings
    assert "data.global_batch_size" not in settings
    names = re.findall(r"text→image (R@\d+)", text[text.index("<h2>Scores") :])
    assert names[:3] == ["R@1", "R@5", "R@10"]
    assert text.count("<polyline") >= 2 * len(figures({"train/loss": [(0, 1.0)], "train/logit_scale": [(0, 1.0)]}))


def test_where_all_runs_score_the_same_none_is_the_best(contrastive: TrainedRun, tmp_path: Path):
    target = tmp_path / "same.html"
    main(["report", str(contrastive.directory), str(contrastive.directory), "--output", str(target)])
    assert "mean recall" in target.read_text(encoding="utf-8")
    assert "<b>" not in target.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_stops_no_run(workspace: Workspace, caplog: pytest.LogCaptureFixture):
    directory = workspace.new_directory()
    (directory / "report.html").mkdir(parents=True)
    run = workspace.train("stage=teacher", *REPORT, directory=directory)
    assert (run.model / "config.json").is_file()
    assert "the report was not written: IsADirectoryError" in caplog.text


def test_what_is_no_run_is_named(tmp_path: Path):
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(tmp_path)])
    assert f"{tmp_path} is not a run directory" in str(exit_.value.code)


def test_lines_of_many_points_are_drawn_with_few():
    points = [(step, float(step % 2)) for step in range(24 * DRAWN)]
    (line,) = figures({"train/loss": points})["Loss"].values()
    assert len(line) == DRAWN
    assert {y for _, y in line} == {0.5}

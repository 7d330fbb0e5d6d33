"""Results file, terminal table, and what the evaluation command says about wrong arguments."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console

from altclip_train.command import hints_at_overrides
from altclip_train.evaluate import CONFIGS, evaluate, find_checkpoint
from altclip_train.evaluation import BenchmarkResult, result_tables, write_results
from altclip_train.evaluation.known_benchmarks import KNOWN


def make_result(**changes: Any) -> BenchmarkResult:
    fields: dict[str, Any] = {
        "benchmark": "coco_cn",
        "language": "zh",
        "protocol": "coco_cn_1053",
        "description": "any positive",
        "metrics": {"text_to_image_R@1": 0.639, "mean_recall": 0.7},
        "counts": {"images": 1000, "texts": 1053},
        "data_sha256": "ab",
        "intervals": {"text_to_image_R@1": (0.61, 0.67)},
        "median_ranks": {"text_to_image": 1.0},
        "chance": {"text_to_image_R@1": 0.001, "mean_recall": 0.002},
    }
    return BenchmarkResult(**{**fields, **changes})


def printed(results: list[BenchmarkResult], *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in result_tables({"": results}):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_results_file_has_exactly_the_documented_fields(tmp_path: Path) -> None:
    file = write_results(tmp_path / "new" / "results.json", "outputs/run/model", [make_result()])
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "checkpoint": "outputs/run/model",
        "results": [
            {
                "benchmark": "coco_cn",
                "language": "zh",
                "protocol": "coco_cn_1053",
                "description": "any positive",
                "metrics": {"text_to_image_R@1": 0.639, "mean_recall": 0.7},
                "intervals": {"text_to_image_R@1": [0.61, 0.67]},
                "median_ranks": {"text_to_image": 1.0},
                "counts": {"images": 1000, "texts": 1053},
                "data_sha256": "ab",
            }
        ],
    }


def test_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    file = write_results(tmp_path / "results.json", "first", [make_result()])
    before = file.read_bytes()
    with pytest.raises(TypeError):
        write_results(file, "second", [make_result(protocol=b"not text")])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("value", [float("nan"), 63.9, -0.1])
def test_metric_must_be_a_share(value: float) -> None:
    with pytest.raises(ValueError, match=r"coco_cn/zh/top1 is .*, expected a share in \[0, 1\]"):
        make_result(metrics={"top1": value})


def test_flat_metrics_carry_benchmark_and_language() -> None:
    assert make_result().flat_metrics() == {
        "coco_cn/zh/text_to_image_R@1": 0.639,
        "coco_cn/zh/mean_recall": 0.7,
    }


def test_table_shows_scores_and_chance_in_percent() -> None:
    text = printed([make_result(language="en"), make_result()])
    rows = [line.split() for line in text.splitlines()]
    assert ["coco_cn", "en", "63.9", "70.0"] in rows
    assert ["coco_cn", "zh", "63.9", "70.0"] in rows
    assert rows.count(["±", "3.0"]) == 2  # half of 61 to 67; the mean has no interval
    assert rows.count(["chance", "0.1", "0.2"]) == 1  # once for both languages


def test_table_shows_each_chance_level_where_languages_differ() -> None:
    other = make_result(language="en", chance={"text_to_image_R@1": 0.001, "mean_recall": 0.5})
    rows = [line.split() for line in printed([other, make_result()]).splitlines()]
    assert ["chance", "0.1", "50.0"] in rows
    assert ["chance", "0.1", "0.2"] in rows


def test_models_stand_below_each_other_in_one_table() -> None:
    results = {"A": [make_result(), make_result(language="en")], "B": [make_result(language="en"), make_result()]}
    console = Console(file=io.StringIO(), width=80)
    (table,) = result_tables(results)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert [row[1:3] for row in rows if row[:1] == ["coco_cn"]] == [["zh", "A"], ["zh", "B"], ["en", "A"], ["en", "B"]]


def test_each_kind_of_benchmark_gets_its_own_table() -> None:
    classes = make_result(benchmark="imagenet", metrics={"top1": 0.5}, chance={"top1": 0.25})
    assert [table.row_count for table in result_tables({"": [make_result(), classes, make_result()]})] == [5, 2]


def test_retrieval_table_fits_eighty_columns() -> None:
    names = [f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    metrics = dict.fromkeys([*names, "mean_recall"], 1.0)
    text = printed([make_result(benchmark="starter_retrieval", metrics=metrics, chance=metrics)])
    assert ["starter_retrieval", "zh", *["100.0"] * 7] in [line.split() for line in text.splitlines()]


def make_model_directory(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "sentencepiece.bpe.model"):
        (folder / name).touch()
    return folder


def test_model_directory_is_accepted(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    assert find_checkpoint(directory) == directory


def test_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_model_directory(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    hub = SimpleNamespace(snapshot_download=lambda repo_id, **_: {"org/name": str(directory)}[repo_id])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert find_checkpoint("org/name") == directory
    with pytest.raises(FileNotFoundError, match="org/other is no directory here and could not be fetched as a hub id"):
        find_checkpoint("org/other")


def test_clip_tokenizer_files_are_accepted(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    (directory / "sentencepiece.bpe.model").rename(directory / "vocab.json")
    with pytest.raises(FileNotFoundError, match=r"lacks its tokenizer \(.*vocab\.json \+ merges\.txt.*\)\. It holds"):
        find_checkpoint(directory)
    (directory / "merges.txt").touch()
    assert find_checkpoint(directory) == directory


def test_a_directory_with_openais_file_and_no_configuration_is_accepted(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    (directory / "config.json").unlink()
    (directory / "model.safetensors").rename(directory / "ViT-L-14.pt")
    assert find_checkpoint(directory) == directory


def test_no_checkpoint_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="pass checkpoint=DIR"):
        find_checkpoint(None)


def test_no_checkpoint_lists_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model_directory(tmp_path / "outputs" / "teacher" / "latest" / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="such as checkpoint=outputs/teacher/latest/model"):
        find_checkpoint(None)


def test_training_state_points_to_the_model_of_its_run(tmp_path: Path) -> None:
    model = make_model_directory(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=f"training state of Lightning.*checkpoint={model}"):
        find_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_run_directory_points_to_its_model(tmp_path: Path) -> None:
    model = make_model_directory(tmp_path / "run" / "model")
    with pytest.raises(FileNotFoundError, match=f"is a run; pass its model directory: checkpoint={model}"):
        find_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.touch(), "is a file; pass a model directory, such as checkpoint="),
        (
            lambda path: path.mkdir(),
            r"lacks its configuration \(config\.json or open_clip_config\.json or \*\.pt\); .* It holds nothing",
        ),
    ],
)
def test_what_is_no_model_directory_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "it")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_checkpoint(tmp_path / "it")


def test_unreadable_benchmark_is_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    # The directory's files are empty: loading it would fail with another error.
    directory = make_model_directory(tmp_path / "model")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        overrides = [
            "eval=[retrieval]",
            f"eval.retrieval.root={tmp_path}/nowhere",
            "eval.retrieval.language=zh",
        ]
        config = compose("evaluate", overrides)
    benchmarks = instantiate(config.eval, _convert_="all")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        evaluate(checkpoint=directory, benchmarks=benchmarks, batch_size=2, device="cpu")


def test_no_benchmark_says_what_to_pass(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pass for example 'eval=\["):
        evaluate(checkpoint=directory, benchmarks={}, batch_size=2, device="cpu")


def test_every_benchmark_configuration_makes_its_benchmark() -> None:
    names = sorted(file.stem for file in (CONFIGS / "eval").glob("*.yaml"))
    assert [name for name in names if not name.startswith("starter")] == sorted(KNOWN)
    overrides = [f"eval=[{','.join(names)}]", "starter=elsewhere"]
    overrides += [f"eval.{name}.root=somewhere" for name in KNOWN]
    overrides += [f"eval.{name}.language=[en,zh]" for name in ("retrieval", "zero_shot")]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        benchmarks = instantiate(compose("evaluate", overrides).eval, _convert_="all")
    assert [benchmark.name for benchmark in benchmarks.values()] == names
    for name, benchmark in benchmarks.items():
        assert benchmark.root == Path("somewhere" if name in KNOWN else f"elsewhere/eval/{name}")
        assert benchmark.known is KNOWN.get(name, KNOWN[benchmark.kind])
        if name.startswith("starter"):
            assert benchmark.languages == ["en", "zh", "ja"]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("eval=[zero_shot,retreival]", "no eval is named 'retreival'; did you mean 'retrieval'?"),
        ("chekpoint=x", "did you mean 'checkpoint'?"),
    ],
)
def test_mistyped_override_of_the_evaluation_is_explained(override: str, hint: str) -> None:
    assert hint in " ".join(hints_at_overrides([override, "batch_size=3"], CONFIGS, "evaluate"))

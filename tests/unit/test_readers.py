"""Every layout that benchmarks come in, on tiny folders, with what is known to go wrong in them."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from altclip_train.evaluation import RetrievalBenchmark, ZeroShotBenchmark
from altclip_train.evaluation.benchmarks import Benchmark
from tests.benchmark_folders import class_names_wheel, picture, write_pictures, write_synsets


def retrieval(root: Path, name: str, language: Any, **more: Any) -> RetrievalBenchmark:
    """A benchmark of a tiny folder, read."""
    benchmark = RetrievalBenchmark(root=root, name=name, language=language, expect_counts=False, **more)
    benchmark.prepare()
    return benchmark


def captions(benchmark: RetrievalBenchmark, language: str) -> dict[str, list[str]]:
    """Captions by picture."""
    names = benchmark.picture_names()
    found: dict[str, list[str]] = {name: [] for name in names}
    for text, owner in zip(benchmark.captions[language], benchmark.text_to_image[language].tolist(), strict=True):
        found[names[owner]].append(text)
    return found


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


# Flickr30k, Flickr30k-CN, COCO-CN: lists of captions


@pytest.mark.parametrize("header", ["image,caption\n", ""])
def test_a_header_is_left_out_and_a_first_caption_never(tmp_path: Path, header: str) -> None:
    write_pictures(tmp_path / "Images", ["1.jpg", "2.jpg"])
    write(tmp_path, {"flickr30k_test_karpathy.txt": f"{header}1.jpg,a cat, asleep\n1.jpg,a cat\n2.jpg,a dog\n"})
    assert captions(retrieval(tmp_path, "flickr30k", "en"), "en") == {
        "1.jpg": ["a cat, asleep", "a cat"],
        "2.jpg": ["a dog"],
    }


def test_captions_with_part_of_speech_tags_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    write(tmp_path, {"flickr30k_test_zh.txt": "image,caption\n1.jpg,两个:m 年轻:a 人:n\n"})
    with pytest.raises(ValueError, match=r"flickr30k_test_zh\.txt:2: .* part-of-speech tags.*flickr30k_cn_test\.txt"):
        retrieval(tmp_path, "flickr30k_cn", "zh")


def test_clean_captions_are_preferred_to_tagged_ones(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    tagged = "image,caption\n1.jpg,两个:m 年轻:a 人:n\n"
    write(tmp_path, {"flickr30k_test_zh.txt": tagged, "flickr30k_cn_test.txt": "1.jpg,两个年轻人\n"})
    assert retrieval(tmp_path, "flickr30k_cn", "cn").captions == {"zh": ["两个年轻人"]}


def test_coco_cn_takes_the_test_pictures_out_of_both_folders_of_coco(tmp_path: Path) -> None:
    one, two, other = (f"COCO_{split}2014_{number:012}" for split, number in (("train", 7), ("val", 8), ("val", 9)))
    write_pictures(tmp_path / "train2014", [f"{one}.jpg"])
    write_pictures(tmp_path / "val2014", [f"{two}.jpg"])
    lines = f"{one}#0\t一只猫\n{one}#1\t。\n{other}#0\t一只鸟\n{two}#0\t两只狗\n"
    write(tmp_path, {"imageid.human-written-caption.txt": lines, "coco-cn_test.txt": f"{two}\n{one}\n"})
    # A caption of mere punctuation is one of the published test set, and counts.
    found = captions(retrieval(tmp_path, "coco_cn", "zh"), "zh")
    assert found == {f"{one}.jpg": ["一只猫", "。"], f"{two}.jpg": ["两只狗"]}


def test_translated_captions_of_coco_cn_are_another_protocol(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    lists = {
        f"coco_captions_cn_test_{size}k.txt": f"image,caption\n1.jpg,{text}\n" for size, text in ((1, "写"), (5, "译"))
    }
    write(tmp_path, lists)
    assert retrieval(tmp_path, "coco_cn", "zh").captions == {"zh": ["写"]}
    assert retrieval(tmp_path, "coco_cn", "zh", protocol="coco_cn_5000").captions == {"zh": ["译"]}


def test_missing_pictures_are_counted_and_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "Images", ["1.jpg"])
    write(tmp_path, {"flickr30k_test_karpathy.txt": "1.jpg,a cat\n2.jpg,a dog\n3.jpg,a bird\n"})
    with pytest.raises(FileNotFoundError, match=r"Images lacks 2 of 3 pictures, the first is 2\.jpg"):
        retrieval(tmp_path, "flickr30k", "en")


def test_a_picture_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    write(tmp_path, {"flickr30k_test_karpathy.txt": "../secret.jpg,a cat\n"})
    with pytest.raises(ValueError, match="leads out of"):
        retrieval(tmp_path, "flickr30k", "en")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    write(tmp_path, {"readme": ""})
    with pytest.raises(
        FileNotFoundError, match=r"no test/nshards\.txt; .*flickr30k_test_CNA\.txt.* It holds readme.*fetch"
    ):
        retrieval(tmp_path, "flickr30k_cn", "zh")


# COCO's and Karpathy's JSON


def coco_json(texts: Mapping[str, list[str]]) -> str:
    images = [{"id": number, "file_name": name} for number, name in enumerate(texts)]
    annotations = [{"image_id": n, "caption": text} for n, found in enumerate(texts.values()) for text in found]
    return json.dumps({"images": images, "annotations": annotations})


def test_coco_counts_all_captions_or_the_first_five(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000001.jpg"
    write_pictures(tmp_path / "val2014", [name])
    six = [f"caption {number}" for number in range(6)]
    write(tmp_path, {"coco_test_karpathy.json": coco_json({name: six})})
    assert captions(retrieval(tmp_path, "coco", "en"), "en") == {name: six}
    assert captions(retrieval(tmp_path, "coco", "en", protocol="karpathy_5k_first5"), "en") == {name: six[:5]}


def test_karpathys_json_gives_the_pictures_of_the_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    images = [
        {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": f"of {number}"}]}
        for number, split in ((1, "test"), (2, "train"))
    ]
    write(tmp_path, {"dataset_flickr30k.json": json.dumps({"images": images})})
    assert captions(retrieval(tmp_path, "flickr30k", "en"), "en") == {"1.jpg": ["of 1"]}


def test_other_json_is_refused_with_what_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"coco_test_karpathy.json": "[]"})
    with pytest.raises(ValueError, match=r"karpathy\.json: expected COCO's images and annotations, Karpathy's"):
        retrieval(tmp_path, "coco", "en")


# XTD10


def xtd10(root: Path, lines: Mapping[str, str]) -> Path:
    write_pictures(root / "images", ["1.jpg", "2.jpg"])
    write(root, {"XTD10/test_image_names.txt": "1.jpg\n2.jpg\n"})
    return write(root, {f"{name}.txt": text for name, text in lines.items()})


def test_xtd10_is_read_as_its_repository_has_it(tmp_path: Path) -> None:
    # Its files of most languages end lines as Windows does, and the last line not at all; Japanese is jp.
    files = {"XTD10/test_1kcaptions_zh": "猫\r\n狗", "STAIR/test_1kcaptions_jp": "ねこ\nいぬ\n"}
    benchmark = retrieval(xtd10(tmp_path, files), "xtd10", ["zh", "ja"])
    assert captions(benchmark, "zh") == {"1.jpg": ["猫"], "2.jpg": ["狗"]}
    assert captions(benchmark, "ja") == {"1.jpg": ["ねこ"], "2.jpg": ["いぬ"]}


def test_xtd10_warns_of_pictures_that_models_have_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    benchmark = retrieval(xtd10(tmp_path, {"XTD10/test_1kcaptions_zh": "猫\n狗\n"}), "xtd10", "zh")
    assert "800 of the 1,000 pictures are from COCO train2014" in caplog.text
    assert "800 of the 1,000 pictures" in benchmark.description("zh")


def test_lines_that_do_not_pair_up_are_refused(tmp_path: Path) -> None:
    root = xtd10(tmp_path, {"XTD10/test_1kcaptions_zh": "猫\n"})
    with pytest.raises(ValueError, match=r"captions_zh\.txt has 1 lines, test_image_names\.txt has 2"):
        retrieval(root, "xtd10", "zh")


def test_the_first_pair_of_mclipevals_xtd10_counts(tmp_path: Path) -> None:
    write_pictures(tmp_path / "Images", ["1.jpg", "2.jpg"])
    write(tmp_path, {"xtd10_jp_pair.txt": "1.jpg,ねこ\n2.jpg,いぬ\n"})
    assert retrieval(tmp_path, "xtd10", "ja").counts("ja") == {"images": 2, "texts": 2}


def test_languages_of_different_pictures_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "Images", ["1.jpg", "2.jpg"])
    write(tmp_path, {"xtd10_en_pair.txt": "1.jpg,cat\n2.jpg,dog\n", "xtd10_zh_pair.txt": "1.jpg,猫\n"})
    with pytest.raises(ValueError, match=r"names 1 pictures, .* names 2; only one of them has 2\.jpg.*one by one"):
        retrieval(tmp_path, "xtd10", ["en", "zh"])


def test_clip_benchmarks_xtd10_names_pictures_by_paths_of_another_machine(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["1.jpg"])
    content = {"image_paths": ["/data/xtd10/images/1.jpg"], "annotations": ["猫"], "indices": [0]}
    write(tmp_path, {"xtd10-zh.json": json.dumps(content, ensure_ascii=False)})
    assert captions(retrieval(tmp_path, "xtd10", "zh"), "zh") == {"1.jpg": ["猫"]}


# Multi30k, Crossmodal-3600


def test_multi30k_has_one_caption_by_task_1_and_five_by_task_2(tmp_path: Path) -> None:
    write_pictures(tmp_path / "flickr30k-images", ["1.jpg", "2.jpg"])
    raw, splits = "data/task{}/raw/", "data/task{}/image_splits/"
    files = {
        f"{raw.format(1)}test_2016_flickr.de.gz": gzip.compress(b"Katze\nHund\n"),
        f"{splits.format(1)}test_2016_flickr.txt": b"1.jpg\n2.jpg\n",
        f"{splits.format(2)}test_2016_images.txt": b"1.jpg\n2.jpg\n",
    }
    for number in range(1, 6):
        text = f"Katze {number}\nHund {number}\n".encode()
        files[f"{raw.format(2)}test_2016.{number}.de.gz"] = gzip.compress(text)
    write(tmp_path, files)
    assert captions(retrieval(tmp_path, "multi30k", "de"), "de") == {"1.jpg": ["Katze"], "2.jpg": ["Hund"]}
    five = captions(retrieval(tmp_path, "multi30k", "de", protocol="task2"), "de")
    assert five["2.jpg"] == [f"Hund {number}" for number in range(1, 6)]


def test_crossmodal3600_takes_the_first_caption_of_each_language(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", ["a.jpg", "b.jpg"])
    texts = {"a": {"zh": ["猫", "一只猫"], "no": ["katt"]}, "b": {"zh": ["狗"], "no": ["hund", "en hund"]}}
    records = [
        {"image/key": key, "image/locale": "x", **{code: {"caption": found} for code, found in by_language.items()}}
        for key, by_language in texts.items()
    ]
    write(tmp_path, {"captions.jsonl": "".join(json.dumps(record) + "\n" for record in records)})
    benchmark = retrieval(tmp_path, "crossmodal3600", ["zh", "no"])
    assert captions(benchmark, "zh") == {"a.jpg": ["猫"], "b.jpg": ["狗"]}
    assert captions(benchmark, "no") == {"a.jpg": ["katt"], "b.jpg": ["hund"]}


# Chinese-CLIP


def chinese_clip(root: Path, *, pictures: list[str], texts: list[dict[str, Any]]) -> Path:
    rows = "".join(f"{number}\t{line}\n" for number, line in enumerate(pictures, start=10))
    return write(root, {"test_imgs.tsv": rows, "test_texts.jsonl": "".join(json.dumps(text) + "\n" for text in texts)})


STANDARD = base64.b64encode(picture(0)).decode()


def test_chinese_clip_files_are_read_as_they_are(tmp_path: Path) -> None:
    urlsafe = base64.urlsafe_b64encode(picture(7)).decode()
    texts = [
        {"text_id": 1, "text": "狗", "image_ids": [11]},
        {"text_id": 2, "text": "猫", "image_ids": [10]},
        {"text_id": 3, "text": "一只猫", "image_ids": [10]},
    ]
    benchmark = retrieval(chinese_clip(tmp_path, pictures=[STANDARD, urlsafe], texts=texts), "coco_cn", "zh")
    assert captions(benchmark, "zh") == {"10": ["猫", "一只猫"], "11": ["狗"]}
    assert benchmark.show([1])[1].getpixel((0, 0)) == (7, 0, 0)


def test_a_foreign_character_in_base64_is_damage_with_its_line(tmp_path: Path) -> None:
    damaged = STANDARD[:20] + "!" + STANDARD[20:]
    texts = [{"text_id": n, "text": "猫", "image_ids": [10 + n]} for n in range(2)]
    root = chinese_clip(tmp_path, pictures=[STANDARD, damaged], texts=texts)
    with pytest.raises(ValueError, match=r"test_imgs\.tsv:2 is damaged \(base64"):
        retrieval(root, "retrieval", "zh")


@pytest.mark.parametrize("ids", [[], [10, 11], [99]])
def test_texts_that_cannot_be_scored_are_refused(tmp_path: Path, ids: list[int]) -> None:
    root = chinese_clip(tmp_path, pictures=[STANDARD] * 2, texts=[{"text_id": 1, "text": "猫", "image_ids": ids}])
    with pytest.raises(ValueError, match=r"test_texts\.jsonl:1: image_ids is .*expected one id of a picture"):
        retrieval(root, "retrieval", "zh")


def test_a_picture_without_texts_is_named(tmp_path: Path) -> None:
    root = chinese_clip(tmp_path, pictures=[STANDARD] * 2, texts=[{"text_id": 1, "text": "猫", "image_ids": [10]}])
    with pytest.raises(ValueError, match=r"image 11 has no usable captions"):
        retrieval(root, "retrieval", "zh")


# Your own tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'image,caption\n1.jpg,"a cat, asleep"\n2.jpg,a dog\n1.jpg,a cat\n'),
        ("c.tsv", "image\tcaption\n1.jpg\ta cat, asleep\n2.jpg\ta dog\n1.jpg\ta cat\n"),
        ("c.tsv", "1.jpg\ta cat, asleep\n2.jpg\ta dog\n1.jpg\ta cat\n"),
        ("c.csv", 'image,zh,en\n1.jpg,猫,"a cat, asleep"\n2.jpg,狗,a dog\n1.jpg,猫,a cat\n'),
        ("c.jsonl", '{"image": "1.jpg", "en": ["a cat, asleep", "a cat"]}\n{"image": "2.jpg", "en": "a dog"}\n'),
    ],
)
def test_tables_of_pictures_and_captions(tmp_path: Path, name: str, text: str) -> None:
    write_pictures(tmp_path / "here", ["1.jpg", "2.jpg"])
    write(tmp_path, {name: text})
    benchmark = RetrievalBenchmark(
        root=tmp_path, language="en", captions=tmp_path / name, pictures=tmp_path / "here", name="mine"
    )
    benchmark.prepare()
    assert captions(benchmark, "en") == {"1.jpg": ["a cat, asleep", "a cat"], "2.jpg": ["a dog"]}


def test_each_language_may_have_a_file(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg", "2.jpg"])
    write(
        tmp_path, {"en.csv": "image,caption\n1.jpg,cat\n2.jpg,dog\n", "zh.csv": "image,caption\n2.jpg,狗\n1.jpg,猫\n"}
    )
    files = {code: str(tmp_path / f"{name}.csv") for code, name in (("en", "en"), ("cn", "zh"))}
    benchmark = RetrievalBenchmark(root=tmp_path, language=["en", "zh"], captions=files)
    benchmark.prepare()
    assert captions(benchmark, "zh") == {"1.jpg": ["猫"], "2.jpg": ["狗"]}


def test_damaged_picture_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"1.jpg": picture(0)[:30], "c.csv": "image,caption\n1.jpg,cat\n"})
    benchmark = RetrievalBenchmark(root=tmp_path, language="en", captions=tmp_path / "c.csv")
    (decode,) = benchmark.prepare()
    with pytest.raises(ValueError, match=r"1\.jpg cannot be decoded"):
        decode()


# ImageNet and its relatives


def zero_shot(root: Path, name: str, language: Any, wheel: Path, **more: Any) -> ZeroShotBenchmark:
    more.setdefault("expect_counts", False)
    benchmark = ZeroShotBenchmark(root=root, name=name, language=language, prompts=[str(wheel)], **more)
    benchmark.prepare()
    return benchmark


def labels(benchmark: ZeroShotBenchmark, language: str) -> dict[str, int]:
    return dict(zip(benchmark.picture_names(), benchmark.labels[language].tolist(), strict=True))


@pytest.mark.parametrize("below", ["", "val"])
def test_labels_of_synset_folders_are_their_order(tmp_path: Path, below: str) -> None:
    write_synsets(tmp_path / "data" / below, {"n03": ["b.JPEG", "a.JPEG"], "n01": ["c.JPEG"]})
    benchmark = zero_shot(tmp_path / "data", "imagenet_cn", "cn", class_names_wheel(tmp_path))
    # n02 has no pictures here, and stays a class.
    assert labels(benchmark, "zh") == {"n01/c.JPEG": 0, "n03/a.JPEG": 2, "n03/b.JPEG": 2}
    assert benchmark.prompts["zh"] == (["鱼", "太阳镜", "太阳镜"], ["{c}的照片。", "许多{c}。"])
    assert benchmark.counts("zh") == {"images": 3, "classes": 3}


def test_names_of_a_subset_are_those_of_its_synsets(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"], "n03": ["b.jpg"]})
    benchmark = zero_shot(tmp_path / "data", "imagenet_r", ["en", "zh"], class_names_wheel(tmp_path))
    assert labels(benchmark, "en") == {"n01/a.jpg": 0, "n03/b.jpg": 1}
    assert benchmark.prompts["en"].class_names == ["fish", "sunglasses"]
    assert benchmark.prompts["zh"].class_names == ["鱼", "太阳镜"]
    assert [benchmark.protocols[language].id for language in ("en", "zh")] == ["openai", "wukong"]


def test_folder_of_no_class_is_refused(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"], "n02": ["b.jpg"]})
    with pytest.raises(ValueError, match=r"n02 is none of the 2 classes"):
        zero_shot(tmp_path / "data", "imagenet_a", "en", class_names_wheel(tmp_path))


def test_loose_pictures_have_no_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(FileNotFoundError, match=r"no class folders such as n01.* 1 pictures have no labels"):
        zero_shot(tmp_path / "data", "imagenet", "en", class_names_wheel(tmp_path))


def test_imagenet_v2_folders_are_numbers_not_words(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"10": ["a.jpeg"], "2": ["b.jpeg"], "0": ["c.jpeg"]})
    benchmark = zero_shot(tmp_path / "data", "imagenet_v2", "en", class_names_wheel(tmp_path))
    assert labels(benchmark, "en") == {"0/c.jpeg": 0, "10/a.jpeg": 10, "2/b.jpeg": 2}


def test_babel_imagenet_has_the_pictures_of_each_languages_classes(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"], "n02": ["b.jpg"], "n03": ["c.jpg"]})
    benchmark = zero_shot(tmp_path / "data", "babel_imagenet", ["zh", "en"], class_names_wheel(tmp_path))
    assert labels(benchmark, "zh") == {"n01/a.jpg": -1, "n02/b.jpg": 1, "n03/c.jpg": 0}
    assert benchmark.prompts["zh"] == (["丙", "乙"], ["照片 {c}"])
    assert benchmark.counts("zh") == {"images": 2, "classes": 2}
    assert benchmark.counts("en") == {"images": 3, "classes": 3}


def test_chinese_clips_label_file_keeps_the_templates_of_wukong(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"]})
    wheel = class_names_wheel(tmp_path)
    label_file = write(tmp_path, {"label_cn.txt": "丁鲷\n金鱼\n大白鲨\n"}) / "label_cn.txt"
    benchmark = ZeroShotBenchmark(
        root=tmp_path / "data",
        name="imagenet_cn",
        language="zh",
        protocol="cnclip_label",
        prompts=[str(wheel), str(label_file)],
        expect_counts=False,
    )
    benchmark.prepare()
    assert benchmark.prompts["zh"] == (["丁鲷", "金鱼", "大白鲨"], ["{c}的照片。", "许多{c}。"])


def test_mclipevals_python_file_is_read_and_never_run(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"]})
    source = (
        "raise SystemExit\n"
        "_CLASSIFICATION_TEMPLATES = {'imagenet1k_cn': ['{c}的照片', '{c}的照片']}\n"
        "_CLASSNAMES = dict(\n    imagenet1k = open('/etc/passwd'),\n    imagenet1k_cn = ['甲', '乙', '乙'],\n)\n"
    )
    wheel, constants = class_names_wheel(tmp_path), write(tmp_path, {"constants.py": source}) / "constants.py"
    arguments: dict[str, Any] = {
        "root": tmp_path / "data",
        "name": "imagenet",
        "protocol": "mclipeval",
        "prompts": [str(wheel), str(constants)],
        "expect_counts": False,
    }
    benchmark = ZeroShotBenchmark(language="zh", **arguments)
    benchmark.prepare()
    assert benchmark.prompts["zh"] == (["甲", "乙", "乙"], ["{c}的照片", "{c}的照片"])
    with pytest.raises(ValueError, match=r"constants\.py:4: expected plain literals"):
        ZeroShotBenchmark(language="en", **arguments).prepare()


def test_missing_prompts_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"]})
    command = f"pip download --no-deps --dest {tmp_path}/cache/altclip_train/prompts clip-benchmark==1.6.2"
    with pytest.raises(FileNotFoundError, match=command):
        ZeroShotBenchmark(root=tmp_path / "data", name="imagenet", language="en").prepare()


def test_prompts_are_found_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "altclip_train" / "prompts"
    folder.mkdir(parents=True)
    class_names_wheel(folder)
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"]})
    benchmark = ZeroShotBenchmark(root=tmp_path / "data", name="imagenet", language="en", expect_counts=False)
    benchmark.prepare()
    assert benchmark.prompts["en"].class_names == ["fish", "sunglasses", "sunglasses"]


# What the data are held against


def prepared(benchmark: Benchmark) -> str:
    benchmark.prepare()
    return benchmark.result_protocol(benchmark.languages[0])


def test_other_counts_than_the_protocols_are_an_error_with_both(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    write(tmp_path, {"coco_captions_cn_test_1k.txt": "1.jpg,猫\n"})
    with pytest.raises(ValueError, match="1 images instead of 1,000; 1 texts instead of 1,053") as error:
        RetrievalBenchmark(root=tmp_path, name="coco_cn", language="zh").prepare()
    assert "eval.coco_cn.expect_counts=false: the result's protocol is then coco_cn_1053_subset" in str(error.value)


def test_a_subset_on_purpose_is_marked_and_described(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.jpg"])
    write(tmp_path, {"coco_captions_cn_test_1k.txt": "1.jpg,猫\n"})
    benchmark = retrieval(tmp_path, "coco_cn", "zh")
    assert benchmark.result_protocol("zh") == "coco_cn_1053_subset"
    assert "not comparable: 1 images instead of 1,000; 1 texts instead of 1,053" in benchmark.description("zh")


def test_whole_data_keep_their_protocol_though_a_subset_is_allowed(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    for number, name in enumerate(names):
        write(tmp_path, {name: b"picture %d" % number})  # only decoding would refuse them
    write(tmp_path, {"xtd10_en_pair.txt": "".join(f"{name},a cat\n" for name in names)})
    assert retrieval(tmp_path, "xtd10", "en").result_protocol("en") == "xtd10_1k"


def test_other_prompts_than_the_pinned_ones_are_an_error(tmp_path: Path) -> None:
    write_synsets(tmp_path / "data", {"n01": ["a.jpg"]})
    wheel = class_names_wheel(tmp_path)
    with pytest.raises(ValueError, match=r"another file .*cn_classnames\.json than the protocol's"):
        zero_shot(tmp_path / "data", "imagenet_cn", "zh", wheel, expect_counts=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "coco_cn", "language": "en"},
            r"eval\.coco_cn\.language is 'en', but its protocols have coco_cn_1053: zh",
        ),
        (
            {"name": "coco_cn", "language": "zh", "protocol": "1k"},
            "protocol is '1k', expected one of coco_cn_1053, coco",
        ),
        ({"name": "mine", "language": "zh", "protocol": "x"}, "no benchmark that has protocols"),
        ({"name": "imagenet", "language": "zh"}, "imagenet is a zero_shot benchmark, not retrieval"),
    ],
)
def test_wrong_protocols_and_languages_are_explained(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalBenchmark(root=tmp_path, **arguments)

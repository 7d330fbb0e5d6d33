"""Decoders: which captions and pictures a batch holds, and how they are drawn."""

import io
import pickle
from collections import Counter

import pytest
import torch
from PIL import Image

from tests.pair_datasets import (
    FirstPixel,
    image_texts,
    parallel_texts,
    pictures_with_captions,
    png,
    text_pairs,
    texts_of,
    write_tar,
)


@pytest.fixture
def parallel(tmp_path):
    return parallel_texts(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    return pictures_with_captions(tmp_path)


def test_text_pairs_are_drawn_language_then_english_and_teacher_english(parallel):
    dataset = text_pairs(parallel)
    batch = dataset.__getitems__([0, 1, 2])
    numbers = [int(key) for key in batch.keys]
    assert numbers == [dataset.plan[position].index for position in range(3)]
    english = [f"en {n}" for n in numbers]
    drawn = [f"{language} {n}" for language, n in zip(batch.languages, numbers, strict=True)]
    assert texts_of(batch.student) == drawn + english
    assert texts_of(batch.teacher) == english
    assert "en" not in batch.languages


def test_every_other_language_is_drawn_evenly_over_epochs(parallel):
    drawn = Counter(text_pairs(parallel).__getitems__(range(600)).languages)
    # 300 expected of each with a standard deviation of 12.2.
    assert drawn.keys() == {"zh", "ja"}
    assert abs(drawn["zh"] - 300) < 5 * 12.2


def test_max_length_limits_student_and_teacher(parallel):
    batch = text_pairs(parallel, max_length=2).__getitems__([0, 1])
    assert set(texts_of(batch.student)[2:]) == {"en"}
    assert set(texts_of(batch.teacher)) == {"en"}


def test_listed_texts_are_drawn_at_one_place_in_both_languages(tmp_path):
    entry = {"en": ["en 0", "en 1", "en 2"], "fr": ["fr 0", "fr 1", "fr 2"]}
    dataset = text_pairs(write_tar(tmp_path / "0.tar", [("k", {"json": entry})]))
    texts = texts_of(dataset.__getitems__(range(60)).student)
    assert [text[3:] for text in texts[:60]] == [text[3:] for text in texts[60:]]
    assert set(texts[:60]) == set(entry["fr"])


@pytest.mark.parametrize(
    ("of_source", "of_dataset", "expected"),
    [(None, ["jp"], {"ja"}), (["en", "cn"], None, {"zh"}), (["en", "zh", "ja"], ["en", "ja", "ko"], {"ja"})],
)
def test_languages_limit_what_is_drawn(parallel, of_source, of_dataset, expected):
    dataset = text_pairs({"urls": parallel, "languages": of_source}, languages=of_dataset)
    assert set(dataset.__getitems__(range(40)).languages) == expected


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ({"zh": "甲"}, "english_missing: languages: zh"),
        ({"en": "a"}, "language_missing: languages: en"),
        ({"en": ["a", "b"], "zh": ["甲"]}, "captions_unaligned: numbers"),
        ({"en": "a", "zh": ""}, "caption_empty: json key 'zh'"),
    ],
)
def test_entries_that_cannot_be_pairs_are_refused_by_reason(tmp_path, captions, reason):
    path = write_tar(tmp_path / "0.tar", [(f"{n}", {"json": captions}) for n in range(30)])
    with pytest.raises(ValueError, match=reason):
        text_pairs(path).__getitems__([0])


def test_image_texts_hold_pictures_with_their_captions(pictures):
    batch = image_texts(pictures).__getitems__(range(10))
    numbers = [int(key) for key in batch.keys]
    assert sorted(numbers) == list(range(10))
    assert batch.pixel_values.shape == (10, 1, 1, 3)
    assert batch.pixel_values[:, 0, 0, 0].tolist() == numbers
    for caption, language, number in zip(texts_of(batch.text), batch.languages, numbers, strict=True):
        assert caption in {"en": {f"a {number}", f"b {number}"}, "zh": {f"甲 {number}"}}[language]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, {"en": 0.5, "zh": 0.5}),
        ({"language_weights": {"en": 1, "cn": 3}}, {"en": 0.25, "zh": 0.75}),
        ({"language_weights": {"zh": 3}}, {"en": 0.25, "zh": 0.75}),  # 1 for a language not named
        ({"language_weights": {"zh": 3}, "languages": ["en", "zh", "ja"]}, {"en": 0.25, "zh": 0.75}),
        ({"language_weights": {"en": 0}}, {"zh": 1}),
        ({"languages": ["cn", "ja"]}, {"zh": 1}),
    ],
)
def test_caption_languages_are_drawn_by_weight(pictures, weights, expected):
    drawn = Counter(image_texts(pictures, **weights).__getitems__(range(900)).languages)
    # At most 15 is the standard deviation of each count.
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[language] - 900 * share) < 75 for language, share in expected.items())


def test_each_caption_of_a_list_is_drawn(pictures):
    texts = texts_of(image_texts(pictures, languages=["en"]).__getitems__(range(400)).text)
    assert abs(sum(text.startswith("a") for text in texts) - 200) < 50


def test_caption_ids_are_equal_for_equal_captions_only(tmp_path):
    captions = ["same", "other", "same", "gleich"]
    samples = [(f"{n}", {"png": png("red"), "en.txt": caption}) for n, caption in enumerate(captions)]
    batch = image_texts(write_tar(tmp_path / "0.tar", samples)).__getitems__(range(4))
    texts, ids = texts_of(batch.text), batch.caption_ids
    assert ids.dtype == torch.int64
    assert [[a == b for a in texts] for b in texts] == [[bool(a == b) for a in ids] for b in ids]


def test_augmentation_sees_transparency_over_white(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (200, 0, 0, 0)).save(buffer, "PNG")
    path = write_tar(tmp_path / "0.tar", [("k", {"png": buffer.getvalue(), "en.txt": "nothing"})])
    batch = image_texts(path, augmentation=lambda image, _: image).__getitems__([0])
    assert batch.pixel_values.flatten().tolist() == [255, 255, 255]


def test_crawled_shards_are_read_as_they_are(tmp_path):
    metadata = {"url": "http://x", "key": "0001", "caption": "wrong", "status": "success", "width": 4}
    path = write_tar(tmp_path / "0.tar", [("0001", {"jpg": png("red"), "txt": "right", "json": metadata})])
    batch = image_texts({"urls": path, "languages": ["cn"]}).__getitems__([0])
    assert (texts_of(batch.text), batch.languages) == (["right"], ["zh"])
    with pytest.raises(ValueError, match=r"caption_language.*`languages`"):
        image_texts(path).__getitems__([0])


def test_benchmark_shards_give_one_caption_per_line(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("s0000001", {"webp": png("red"), "txt": "one\ntwo\nthree"})])
    batch = image_texts({"urls": path, "languages": ["en"]}).__getitems__(range(50))
    assert set(texts_of(batch.text)) == {"one", "two", "three"}


def test_full_width_characters_are_narrowed_only_if_asked(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("k", {"png": png("red"), "zh.txt": "ＡＢ　猫！"})])
    kept, narrowed = (image_texts(path, normalize_full_width=asked).__getitems__([0]) for asked in (False, True))
    assert (texts_of(kept.text), texts_of(narrowed.text)) == (["ＡＢ　猫！"], ["AB 猫!"])
    assert kept.caption_ids.tolist() != narrowed.caption_ids.tolist()


def test_draft_is_what_the_picture_is_decoded_with(tmp_path):
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "JPEG")
    path = write_tar(tmp_path / "0.tar", [("k", {"jpg": buffer.getvalue(), "en.txt": "a gradient"})])
    sizes = []

    class NotesSizes(FirstPixel):
        def cropped(self, image):
            sizes.append(image.size)
            return super().cropped(image)

    for draft in (None, lambda width, height: (width // 4, height // 4)):
        image_texts(path, image_transform=NotesSizes(), draft=draft).__getitems__([0])
    assert sizes == [(256, 256), (64, 64)]


def test_hostile_members_are_never_run(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return open, (str(marker), "w")

    payload = pickle.dumps(Payload())
    hostile = {name: payload for name in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "cls", "sh")}
    samples = [(f"{n}", {**hostile, "png": png("red"), "json": {"en": "a", "zh": "甲"}}) for n in range(3)]
    path = write_tar(tmp_path / "0.tar", samples)
    assert image_texts(path).__getitems__([0, 1]).keys
    assert text_pairs(path).__getitems__([0, 1]).keys
    as_images = [(f"{n}", {"jpg": payload, "json": payload, "en.txt": payload}) for n in range(3)]
    with pytest.raises(ValueError, match="has no sample that can be used"):
        image_texts(write_tar(tmp_path / "1.tar", as_images)).__getitems__([0])
    assert not marker.exists()


@pytest.mark.parametrize(
    ("languages", "weights", "message"),
    [
        (None, {"en": -1, "zh": 2}, "one finite weight >= 0"),
        (None, {"en": float("inf")}, "one finite weight >= 0"),
        (None, {"zh": 1, "cn": 1}, "per language"),
        (None, {"english": 1}, "no language code"),
        (["en", "zh"], {"cn": 2, "ja": 1}, r"names ja, which languages=\['en', 'zh'\] lacks: add it"),
        (["en", "zh"], {"en": 0, "zh": 0}, "none of languages"),
    ],
)
def test_faulty_language_weights_are_refused(pictures, languages, weights, message):
    with pytest.raises(ValueError, match=message):
        image_texts(pictures, languages=languages, language_weights=weights)

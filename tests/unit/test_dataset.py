"""Datasets: which captions and pictures a batch holds, how draws are made, and what happens to bad data."""

import io
import json
import pickle
import tarfile
from collections import Counter
from itertools import pairwise

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from altclip_train.data.dataset import ImageTextDataset, Source, TextPairDataset
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.types import PackedTokens


class BytesTokenizer:
    """Utf-8 bytes as tokens, so that tests can read texts back."""

    def pack(self, texts, max_length):
        return PackedTokens.from_lists([list(text.encode())[:max_length] for text in texts])


def texts_of(packed):
    ids, edges = packed.input_ids.tolist(), packed.cumulative_lengths.tolist()
    return [bytes(ids[start:end]).decode() for start, end in pairwise(edges)]


def write_tar(path, samples):
    """``samples`` are (key, {field: bytes, text or JSON object})."""
    with tarfile.open(path, "w") as tar:
        for key, fields in samples:
            for field, value in fields.items():
                data = value if isinstance(value, bytes) else value if isinstance(value, str) else json.dumps(value)
                data = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


def first_pixel(image):
    return torch.tensor(image.convert("RGB").getpixel((0, 0)), dtype=torch.float32).view(3, 1, 1)


def shift_red(image, generator):
    return Image.new("RGB", image.size, (int(generator.integers(1, 256)), 0, 0))


def as_it_is(batch):
    return batch


def text_pairs(source, **arguments):
    tokenizer = BytesTokenizer()
    defaults = {
        "plan_seed": 0,
        "student_tokenizer": tokenizer,
        "teacher_tokenizer": tokenizer,
        "max_length": 99,
    }
    sources = source if isinstance(source, list) else [source]
    return TextPairDataset(sources=sources, **{**defaults, **arguments})


def image_texts(source, **arguments):
    defaults = {
        "plan_seed": 0,
        "tokenizer": BytesTokenizer(),
        "image_transform": first_pixel,
        "max_length": 99,
    }
    sources = source if isinstance(source, list) else [source]
    return ImageTextDataset(sources=sources, **{**defaults, **arguments})


@pytest.fixture
def parallel(tmp_path):
    """Ten entries in three languages."""
    languages = ("en", "zh", "ja")
    entries = [(f"{n:03d}", {"json": {language: f"{language} {n}" for language in languages}}) for n in range(10)]
    return write_tar(tmp_path / "parallel.tar", entries)


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures whose red is their number; two English captions and a Chinese one each."""
    samples = [
        (f"{n:03d}", {"png": png((n, 0, 0)), "json": {"en": [f"a {n}", f"b {n}"], "zh": f"甲 {n}"}}) for n in range(10)
    ]
    return write_tar(tmp_path / "pictures.tar", samples)


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


def test_draws_depend_on_seed_and_epoch_and_on_nothing_else(parallel):
    def drawn(positions, seed=0):
        batch = text_pairs(parallel, plan_seed=seed).__getitems__(positions)
        return dict(zip(batch.keys, batch.languages, strict=True))

    assert drawn(range(10)) == drawn(range(10))
    assert {**drawn(range(4)), **drawn(range(4, 10))} == drawn(range(10))
    assert len({tuple(sorted(drawn(range(10 * e, 10 * e + 10)).items())) for e in range(3)}) == 3
    assert drawn(range(10)) != drawn(range(10), seed=1)


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
        ({"zh": "甲"}, "english_missing: 20"),
        ({"en": "a"}, "language_missing: 20"),
        ({"en": ["a", "b"], "zh": ["甲"]}, "captions_unaligned: 20"),
        ({"en": "a", "zh": ""}, "caption_empty: 20"),
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
    assert batch.pixel_values.shape == (10, 3, 1, 1)
    assert batch.pixel_values[:, 0, 0, 0].tolist() == numbers
    for caption, language, number in zip(texts_of(batch.text), batch.languages, numbers, strict=True):
        assert caption in {"en": {f"a {number}", f"b {number}"}, "zh": {f"甲 {number}"}}[language]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, {"en": 0.5, "zh": 0.5}),
        ({"en": 1, "cn": 3}, {"en": 0.25, "zh": 0.75}),
        ({"zh": 1, "ja": 9}, {"zh": 1}),
    ],
)
def test_caption_languages_are_drawn_by_weight(pictures, weights, expected):
    drawn = Counter(image_texts(pictures, languages=weights).__getitems__(range(900)).languages)
    # At most 15 is the standard deviation of each count.
    assert drawn.keys() == expected.keys()
    assert all(abs(drawn[language] - 900 * share) < 75 for language, share in expected.items())


def test_each_caption_of_a_list_is_drawn(pictures):
    texts = texts_of(image_texts(pictures, languages={"en": 1}).__getitems__(range(400)).text)
    assert abs(sum(text.startswith("a") for text in texts) - 200) < 50


def test_caption_ids_are_equal_for_equal_captions_only(tmp_path):
    captions = ["same", "other", "same", "gleich"]
    samples = [(f"{n}", {"png": png("red"), "en.txt": caption}) for n, caption in enumerate(captions)]
    batch = image_texts(write_tar(tmp_path / "0.tar", samples)).__getitems__(range(4))
    texts, ids = texts_of(batch.text), batch.caption_ids
    assert ids.dtype == torch.int64
    assert [[a == b for a in texts] for b in texts] == [[bool(a == b) for a in ids] for b in ids]


def test_augmentation_draws_depend_on_seed_and_epoch_and_on_nothing_else(pictures):
    def reds(positions, seed=0):
        dataset = image_texts(pictures, augmentation=shift_red, plan_seed=seed)
        batch = dataset.__getitems__(positions)
        return dict(zip(batch.keys, batch.pixel_values[:, 0, 0, 0].tolist(), strict=True))

    assert reds(range(10)) == {**reds(range(7, 10)), **reds(range(7))}
    assert reds(range(10)) != reds(range(10, 20))
    assert reds(range(10)) != reds(range(10), seed=1)
    assert len(set(reds(range(10)).values())) > 5


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


def test_loader_processes_and_ranks_do_not_change_the_order(pictures):
    def batches(rank, ranks, workers):
        dataset = image_texts(pictures, augmentation=shift_red)
        sampler = PlannedBatchSampler(plan=dataset.plan, global_batch_size=5, rank=rank, world_size=ranks)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=as_it_is,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        return list(loader)

    alone = batches(0, 1, 0)
    halves = list(zip(batches(0, 2, 2), batches(1, 2, 0), strict=True))
    for whole, (first, second) in zip(alone, halves, strict=True):
        assert whole.keys == first.keys + second.keys
        assert torch.equal(whole.pixel_values, torch.cat([first.pixel_values, second.pixel_values]))


def test_dataset_survives_pickling(pictures):
    dataset = image_texts(pictures)
    dataset.__getitems__([0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.__getitems__([3, 4]).keys == dataset.__getitems__([3, 4]).keys
    assert copy.fingerprint == dataset.fingerprint


def test_bad_sample_is_replaced_by_the_next_of_its_source(tmp_path):
    samples = [(f"{n}", {"png": png((n, 0, 0)) if n not in (3, 4) else b"junk", "en.txt": f"{n}"}) for n in range(6)]
    other = write_tar(tmp_path / "other.tar", [("other", {"png": png("red"), "en.txt": "other"})])
    dataset = image_texts([write_tar(tmp_path / "0.tar", samples), other], max_bad_fraction=0.5)
    refs = [dataset.plan[position] for position in range(7)]
    batch = dataset.__getitems__(range(7))
    expected = [f"{5 if ref.index in (3, 4) else ref.index}" if ref.source == 0 else "other" for ref in refs]
    assert batch.keys == texts_of(batch.text) == expected
    assert dataset.skipped.reasons == {"image_type": 3}
    assert dataset.skipped.seen == 10


def test_last_sample_is_replaced_by_the_first(tmp_path):
    samples = [("0", {"json": {"en": "a", "zh": "甲"}}), ("1", {"json": {"en": "b"}})]
    dataset = text_pairs(write_tar(tmp_path / "0.tar", samples), max_bad_fraction=1)
    assert dataset.__getitems__(range(4)).keys == ["0"] * 4


def test_too_many_bad_samples_stop_with_reasons_counts_and_an_example(tmp_path):
    samples = [(f"{n:02d}", {"jpg": b"junk" if n % 2 else png("red"), "en.txt": "x"}) for n in range(40)]
    dataset = image_texts(write_tar(tmp_path / "0.tar", samples), max_bad_fraction=0.05)
    with pytest.raises(ValueError, match=r"max_bad_fraction=0\.05") as error:
        dataset.__getitems__(range(40))
    assert "image_type: " in str(error.value)
    assert "0.tar" in str(error.value)


def test_source_without_any_good_sample_is_an_error_even_when_all_may_be_bad(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("k", {"json": {"en": "a"}})])
    with pytest.raises(ValueError, match=r"(?s)0\.tar' has no sample that can be used.*language_missing: 1"):
        text_pairs(path, max_bad_fraction=1).__getitems__([0])


def test_bytes_that_vanish_are_a_bad_sample(parallel):
    dataset = text_pairs(parallel, max_bad_fraction=0.5)
    dataset.__getitems__([0])
    with open(parallel, "r+b") as file:
        file.truncate(5 * 1024)
    dataset.__getitems__(range(10))
    assert dataset.skipped.reasons["unreadable"] > 0


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


def test_sources_share_the_stream_by_weight(parallel, tmp_path):
    other = write_tar(tmp_path / "other.tar", [("o", {"json": {"en": "a", "zh": "甲"}})])
    sources = [{"urls": parallel, "weight": 1}, {"urls": [other], "weight": 3, "name": "other"}]
    keys = Counter(text_pairs(sources).__getitems__(range(40)).keys)
    assert keys["o"] == 30
    assert text_pairs([parallel, other]).__getitems__(range(11)).keys.count("o") == 1


def test_fingerprint_stands_for_shards_seed_and_weights(parallel, pictures):
    fingerprints = {
        text_pairs(parallel).fingerprint,
        text_pairs(parallel, plan_seed=1).fingerprint,
        text_pairs(pictures).fingerprint,
        text_pairs([parallel, pictures]).fingerprint,
        text_pairs([{"urls": parallel, "weight": 2}, {"urls": pictures, "weight": 1}]).fingerprint,
    }
    assert len(fingerprints) == 5
    assert text_pairs(parallel).fingerprint in fingerprints


def test_empty_source_is_an_error_that_names_it(parallel, tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match="source 'news' has no samples"):
        text_pairs([parallel, {"urls": empty, "name": "news"}])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"urls": "x", "wieght": 2}, "unknown key 'wieght'.*did you mean 'weight'"),
        ({"urls": "x", "zzz": 2}, r"unknown key 'zzz'.*urls, weight, languages, name"),
        ({"name": "x"}, "needs 'urls'"),
        ({"urls": "x", "languages": "en"}, "languages='en'.*list"),
        ({"urls": "x", "languages": ["english"]}, "'english' is no language code"),
        ({"urls": "x", "languages": [False]}, "False is no language code.*in quotes"),  # `no` in YAML
    ],
)
def test_faulty_source_configs_are_explained(config, message):
    with pytest.raises(ValueError, match=message):
        Source.from_config(config)


def test_weights_are_given_to_all_sources_or_none(parallel, pictures):
    with pytest.raises(ValueError, match=r"pictures\.tar' has no weight but others have"):
        text_pairs([{"urls": parallel, "weight": 2}, pictures])


@pytest.mark.parametrize("weights", [{}, {"en": 0}, {"en": -1, "zh": 2}, {"zh": 1, "cn": 1}, {"english": 1}])
def test_faulty_language_weights_are_refused(pictures, weights):
    with pytest.raises(ValueError, match=r"languages=|no language code"):
        image_texts(pictures, languages=weights)


def test_no_source_is_an_error():
    with pytest.raises(ValueError, match="no data source"):
        text_pairs([])

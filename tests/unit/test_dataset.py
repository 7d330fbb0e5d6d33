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

from altclip_train.data import shards as shards_module
from altclip_train.data.dataset import ImageTextDataset, TextPairDataset
from altclip_train.data.sampler import PlannedBatchSampler
from altclip_train.data.sources import Source
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
    assert batch.pixel_values.shape == (10, 3, 1, 1)
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


def shard_with_damage(tmp_path, damaged, size, name="0.tar"):
    """Pictures and captions that say their number; the damaged ones are no pictures."""
    samples = [(f"{n}", {"png": b"junk" if n in damaged else png((n, 0, 0)), "en.txt": f"{n}"}) for n in range(size)]
    return write_tar(tmp_path / name, samples)


def test_bad_sample_is_replaced_by_one_of_its_shard_and_named_in_the_batch(tmp_path):
    damaged = (3, 4, 11)
    shards = [shard_with_damage(tmp_path, damaged, 20), shard_with_damage(tmp_path, (), 20, "1.tar")]
    dataset = image_texts({"urls": shards})
    refs = [dataset.plan[position] for position in range(40)]
    batch = dataset.__getitems__(range(40))
    assert texts_of(batch.text) == batch.keys
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [int(key) for key in batch.keys]
    for ref, key in zip(refs, batch.keys, strict=True):
        if ref.index in damaged:
            assert int(key) not in damaged
        else:
            assert int(key) == ref.index % 20
    met = [ref.index for ref in refs if ref.index in damaged]
    assert batch.skipped == [
        ("image_type", shards[0], f"{n}", "neither JPEG, PNG nor WebP: it begins with b'junk'") for n in met
    ]


def test_replacement_depends_on_seed_and_epoch_and_on_nothing_else(tmp_path):
    path = shard_with_damage(tmp_path, (7,), 30)

    def replacement(epoch, seed=0, together=30):
        dataset = image_texts(path, plan_seed=seed)
        positions = range(30 * epoch, 30 * epoch + 30)
        place = next(n for n in positions if dataset.plan[n].index == 7)
        start = place - place % together
        return dataset.__getitems__(range(start, start + together)).keys[place - start]

    assert replacement(0) == replacement(0, together=1) == replacement(0, together=5)
    assert len({replacement(epoch) for epoch in range(5)}) > 1
    assert len({replacement(0, seed=seed) for seed in range(5)}) > 1


def test_shard_without_any_good_sample_is_replaced_by_others_at_bounded_cost(tmp_path, monkeypatch):
    shards = [shard_with_damage(tmp_path, range(50), 50), shard_with_damage(tmp_path, (), 50, "1.tar")]
    dataset = image_texts({"urls": shards})
    reads = []
    read = dataset.reader.read
    monkeypatch.setattr(dataset.reader, "read", lambda *place: reads.append(place) or read(*place))
    batch = dataset.__getitems__(range(100))
    assert len(batch.skipped) == 50  # those that the plan visits, not those tried in their place
    assert {skipped.shard for skipped in batch.skipped} == {shards[0]}
    assert len(reads) < 50 + 50 * 12


def test_only_good_sample_of_a_source_replaces_all_others(tmp_path):
    samples = [("0", {"json": {"en": "a", "zh": "甲"}}), ("1", {"json": {"en": "b"}})]
    dataset = text_pairs(write_tar(tmp_path / "0.tar", samples))
    assert dataset.__getitems__(range(4)).keys == ["0"] * 4


def test_source_without_any_good_sample_is_an_error(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("k", {"json": {"en": "a"}})])
    with pytest.raises(ValueError, match=r"0\.tar' has no sample that can be used .* of 'k' in .*language_missing: "):
        text_pairs(path).__getitems__([0])


def test_bytes_that_vanish_are_a_bad_sample(parallel):
    dataset = text_pairs(parallel)
    dataset.__getitems__([0])
    with open(parallel, "r+b") as file:
        file.truncate(5 * 1024)
    assert {skipped.reason for skipped in dataset.__getitems__(range(10)).skipped} == {"unreadable"}


def test_member_of_too_many_bytes_is_skipped_before_it_is_read(tmp_path, monkeypatch):
    samples = [(f"{n}", {"png": png("red"), "en.txt": "a" * (400 if n == 3 else 40)}) for n in range(20)]
    dataset = image_texts(write_tar(tmp_path / "0.tar", samples))
    monkeypatch.setattr(shards_module, "MAX_MEMBER_BYTES", 300)
    reads = []
    pread = shards_module.os.pread
    monkeypatch.setattr(shards_module.os, "pread", lambda *place: reads.append(place[1]) or pread(*place))
    (skipped,) = dataset.__getitems__(range(20)).skipped
    assert (skipped.reason, skipped.key, skipped.detail) == ("member_bytes", "3", "en.txt has 400 bytes, limit 300")
    assert max(reads) < 300


def test_shard_that_vanishes_is_a_bad_sample(parallel, tmp_path):
    other = write_tar(tmp_path / "other.tar", [(f"o{n}", {"json": {"en": "a", "zh": "甲"}}) for n in range(10)])
    dataset = text_pairs({"urls": [parallel, other]})
    (tmp_path / "other.tar").unlink()
    batch = dataset.__getitems__(range(20))
    assert len(batch.skipped) == 10
    assert {(skipped.reason, skipped.shard) for skipped in batch.skipped} == {("unreadable", other)}


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_hand_over_what_they_skipped(tmp_path, workers):
    dataset = image_texts(shard_with_damage(tmp_path, range(0, 40, 5), 40))
    sampler = PlannedBatchSampler(plan=dataset.plan, global_batch_size=10, rank=0, world_size=1)
    arguments = {"batch_sampler": sampler, "collate_fn": as_it_is, "multiprocessing_context": "fork"}
    alone = [dataset.__getitems__(positions) for positions in sampler]
    loaded = list(DataLoader(dataset, num_workers=workers, **arguments))
    assert [batch.skipped for batch in loaded] == [batch.skipped for batch in alone]
    assert [batch.keys for batch in loaded] == [batch.keys for batch in alone]
    assert sum(len(batch.skipped) for batch in alone) == 8


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
    transform = lambda image: sizes.append(image.size) or first_pixel(image)  # noqa: E731
    for draft in (None, lambda width, height: (width // 4, height // 4)):
        image_texts(path, image_transform=transform, draft=draft).__getitems__([0])
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


def test_no_source_is_an_error():
    with pytest.raises(ValueError, match="no data source"):
        text_pairs([])

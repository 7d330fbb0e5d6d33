"""Sources of data: their configuration and their weights."""

from collections import Counter

import pytest

from altclip_train.data.sources import Source
from tests.pair_datasets import (
    parallel_texts,
    pictures_with_captions,
    text_pairs,
    write_tar,
)


@pytest.fixture
def parallel(tmp_path):
    return parallel_texts(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    return pictures_with_captions(tmp_path)


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


def test_sources_share_the_stream_by_weight(parallel, tmp_path):
    other = write_tar(tmp_path / "other.tar", [("o", {"json": {"en": "a", "zh": "甲"}})])
    sources = [{"urls": parallel, "weight": 1}, {"urls": [other], "weight": 3, "name": "other"}]
    keys = Counter(text_pairs(sources).__getitems__(range(40)).keys)
    assert keys["o"] == 30
    assert text_pairs([parallel, other]).__getitems__(range(11)).keys.count("o") == 1


def test_empty_source_is_an_error_that_names_it(parallel, tmp_path):
    empty = write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match="source 'news' has no samples"):
        text_pairs([parallel, {"urls": empty, "name": "news"}])


def test_no_source_is_an_error():
    with pytest.raises(ValueError, match="no data source"):
        text_pairs([])

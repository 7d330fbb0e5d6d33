"""What the demo shows: pictures by texts, texts by pictures, labels by probability; its cache follows the files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.data.samples import BadSample
from altclip_train.embedding.collection import Collection
from altclip_train.embedding.towers import Towers
from tests.workspace import Workspace

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (10, 30, 230)}


def png(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def towers(workspace: Workspace) -> Towers:
    return Towers(workspace.clip)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / f"{name}.png").write_bytes(png(colour))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def collection(towers: Towers, photos: Path, tmp_path: Path) -> Collection:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red apple\ntwo cats\na red apple\n", encoding="utf-8")
    return Collection(towers, [str(photos)], [str(texts)], tmp_path / "cache")


def test_search_ranks_all_sound_pictures_by_cosine(collection: Collection, towers: Towers):
    found = collection.search("a red apple", 5)
    text = towers.encode_texts(["a red apple"])[0]
    (pictures,) = towers.encode_pictures([{"png": png(colour)} for colour in COLOURS.values()])
    expected = dict(zip(COLOURS, pictures.features @ text, strict=True))
    assert [Path(one.id).stem for one in found] == sorted(expected, key=lambda name: -expected[name])
    np.testing.assert_allclose([one.score for one in found], sorted(expected.values(), reverse=True), atol=2e-3)
    assert collection.picture(found[0].id).size == (40, 30)


def test_labels_get_the_probabilities_of_the_model(collection: Collection, towers: Towers):
    labels = ["red", "green", "blue"]
    (found,) = towers.encode_pictures([{"png": png(COLOURS["red"])}])
    logits = torch.from_numpy(towers.encode_texts(labels) @ found.features[0]) * towers.model.logit_scale.detach().exp()
    probabilities = collection.classify(png(COLOURS["red"]), labels)
    torch.testing.assert_close(torch.tensor(list(probabilities.values())), logits.softmax(0), rtol=1e-4, atol=1e-6)


def test_equal_texts_describe_a_picture_once(collection: Collection):
    assert sorted(one.id for one in collection.describe(png(COLOURS["blue"]), 5)) == ["a red apple", "two cats"]


def test_what_is_no_picture_is_refused(collection: Collection):
    with pytest.raises(BadSample, match="neither JPEG, PNG nor WebP"):
        collection.classify(b"no picture", ["a", "b"])


def test_cache_is_used_again_and_follows_the_files(towers: Towers, photos: Path, tmp_path: Path, monkeypatch):
    cache = tmp_path / "cache"
    first = Collection(towers, [str(photos)], [], cache)
    monkeypatch.setattr(towers, "encode_pictures", lambda _: pytest.fail("encoded again"))
    assert Collection(towers, [str(photos)], [], cache).directory == first.directory
    monkeypatch.undo()
    (photos / "more.png").write_bytes(png((0, 0, 0)))
    more = Collection(towers, [str(photos)], [], cache)
    assert len(more.search("a cat", 9)) == 4
    assert len(first.search("a cat", 9)) == 3


def test_captions_of_shards_are_the_texts_unless_others_are_given(towers: Towers, workspace: Workspace, tmp_path: Path):
    shard = workspace.first_samples("image_texts/singles/train/000000.tar", 4)
    collection = Collection(towers, [str(shard)], None, tmp_path / "cache")
    assert collection.texts is not None
    key = collection.search("a cat", 1)[0].id
    assert key.startswith(f"{shard}#")
    assert collection.describe(png((0, 0, 0)), 3)

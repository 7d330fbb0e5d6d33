"""`altclip search` finds what a plain sort of all scores finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altclip_train.cli import main
from altclip_train.embedding import search as searching
from altclip_train.embedding.search import nearest, search
from altclip_train.embedding.tables import Description, Table, embed_pictures, embed_texts
from altclip_train.embedding.towers import Towers
from altclip_train.models import AltCLIPModel
from altclip_train.processing import AltCLIPProcessor
from tests.unit.test_embedding import TEXTS, alone, clip, picture, save_altclip, save_clip

__all__ = ["alone", "clip"]  # fixtures

DESCRIPTION = Description(
    kind="texts", fingerprint={}, inputs="", width=6, file_format="npy", rows_per_part=40, parts=3
)


@pytest.fixture
def random_index(tmp_path: Path) -> np.ndarray:
    """Three parts, in which every vector occurs twice: (100, 6)."""
    features = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float16)
    features = np.concatenate([features, features])
    for part, rows in enumerate((slice(0, 40), slice(40, 80), slice(80, 100))):
        np.save(tmp_path / f"part-{part:05d}.npy", features[rows])
        ids = range(100)[rows]
        (tmp_path / f"part-{part:05d}.ids.txt").write_text("".join(f"entry {i}\n" for i in ids))
    return features


@pytest.mark.parametrize("rows_at_once", [1, 7, 65_536])
@pytest.mark.parametrize("top", [1, 10, 55, 1000])
def test_hits_are_those_of_a_stable_sort(
    tmp_path: Path, random_index: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows_at_once: int, top: int
) -> None:
    monkeypatch.setattr(searching, "ROWS_AT_ONCE", rows_at_once)
    # Sums of few bits are the same in any order, so that scores of equal vectors are equal.
    query = np.array([1, -2, 0.5, 4, 0, 1], np.float32)
    scores = (random_index.astype(np.float64) * query).sum(axis=1)
    order = np.argsort(-scores, kind="stable")[:top]
    hits = nearest(tmp_path, DESCRIPTION, query, top)
    assert [hit.id for hit in hits] == [f"entry {i}" for i in order]
    assert [hit.rank for hit in hits] == list(range(1, len(order) + 1))
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_texts_find_themselves(clip: Path, tmp_path: Path, file_format: str) -> None:
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    texts = [*TEXTS[:2], "one\u2028line", *TEXTS[2:]]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    table = Table(directory=tmp_path / "out", rows_per_part=4, file_format=file_format)
    embed_texts(Towers(clip, max_length=20), [str(tmp_path / "a.txt")], table)
    for text in texts[:4]:
        hit = search(tmp_path / "out", clip, text, top=1)[0]
        assert hit.id == text
        assert hit.score == pytest.approx(1.0, abs=2e-3)


@pytest.fixture
def pictures(clip: Path, tmp_path: Path) -> Path:
    """An index of seven pictures."""
    for seed in range(7):
        (tmp_path / f"{seed}.png").write_bytes(picture(seed))
    table = Table(directory=tmp_path / "out", rows_per_part=3, dtype="float32")
    embed_pictures(Towers(clip), [str(tmp_path)], table)
    return tmp_path


def test_pictures_of_a_clip_are_found_by_an_altclip_around_it(clip: Path, pictures: Path) -> None:
    altclip = save_altclip(pictures / "altclip", clip)
    model, processor = AltCLIPModel.from_pretrained(altclip), AltCLIPProcessor.from_pretrained(altclip)
    images = [Image.open(pictures / f"{seed}.png") for seed in range(7)]
    with torch.no_grad():
        inputs = processor(text=["一张猫的照片"], images=images, return_tensors="pt")
        output = model(**inputs)
    scores = (output.text_embeds @ output.image_embeds.T)[0].numpy()
    hits = search(pictures / "out", altclip, "一张猫的照片", top=7)
    assert [hit.id for hit in hits] == [str(pictures / f"{i}.png") for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1], atol=1e-5)


def test_picture_finds_itself(clip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["search", str(pictures / "out"), str(clip), "--image", str(pictures / "3.png"), "--top", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in found] == [1, 2]
    assert found[0]["id"] == str(pictures / "3.png")
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-5)
    main(["search", str(pictures / "out"), str(clip), "cat", "--top", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


def test_index_of_another_model_is_refused(clip: Path, pictures: Path) -> None:
    other = save_clip(pictures / "other", seed=1)
    with pytest.raises(SystemExit, match=r"out was not embedded with .*other: weights is .*, expected "):
        main(["search", str(pictures / "out"), str(other), "cat"])
    with pytest.raises(SystemExit, match=r"other has no embeddings\.json: give a directory"):
        main(["search", str(other), str(clip), "cat"])


def test_query_that_cannot_be_made_is_an_error(clip: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.png: image_type"):
        search(pictures / "out", clip, image=pictures / "broken.png")
    with pytest.raises(ValueError, match=r"gone\.png: unreadable: .*No such file"):
        search(pictures / "out", clip, image=pictures / "gone.png")
    for query, image in ((None, None), ("cat", pictures / "3.png")):
        with pytest.raises(ValueError, match="either a text or a picture"):
            search(pictures / "out", clip, query, image=image)
    with pytest.raises(ValueError, match="top=0"):
        search(pictures / "out", clip, "cat", top=0)


def test_index_that_is_not_complete_is_searched_with_a_warning(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    table = Table(directory=tmp_path / "out", rows_per_part=4, part=(1, 3))
    embed_texts(Towers(clip), [str(tmp_path / "a.txt")], table)
    hits = search(tmp_path / "out", clip, "cat", top=100)
    assert {hit.id for hit in hits} == set(TEXTS[4:8])
    assert "out is not complete: searching the 1 parts that are there" in caplog.text

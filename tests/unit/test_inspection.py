"""inspect, verify, bench and the contact sheet: numbers against samples that are counted by hand."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altclip_train.cli import main
from altclip_train.data.contact_sheet import Pictured, contact_sheet, wrap
from altclip_train.data.fonts import Fonts, find_fonts
from altclip_train.data.inspection import evenly_spread, inspect, spread
from altclip_train.data.verification import verify
from altclip_train.processing import XLMRTokenizer, train_sentencepiece


def picture(color, size=(6, 4), format="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, format)
    return stream.getvalue()


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for field, data in members.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def captions(**texts):
    return json.dumps(texts, ensure_ascii=False).encode()


@pytest.fixture
def shards(tmp_path):
    """Two shards with seven samples, two of them damaged, one that repeats another."""
    first = {
        "a": {"png": picture("red"), "json": captions(zh=["红", "红色的图"], en="red")},
        "b": {"jpg": picture("blue", (8, 30), "JPEG"), "json": captions(zh="no Chinese")},
        "c": {"png": picture("red"), "json": captions(zh=["红", "红色的图"], en="red")},
        "d": {"png": picture("red")[:-30], "json": captions(zh="坏")},
    }
    second = {
        "e": {"png": picture("green"), "cls": b"3"},
        "f": {"json": captions(en="a text", zh="文字")},
        "g": {"png": picture("black"), "zh.txt": b"\xff\xfe"},
    }
    write_shard(tmp_path / "0.tar", first)
    write_shard(tmp_path / "1.tar", second)
    return [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(["red blue a text", "红色的图 文字"] * 20, folder / "sentencepiece.bpe.model", 40)
    return XLMRTokenizer(folder / "sentencepiece.bpe.model")


class TestInspect:
    def test_counts(self, shards):
        found = inspect(shards, samples=0).as_json()
        assert (found["shards"], found["samples"], found["looked_at"], found["labelled"]) == (2, 7, 7, 1)
        zh, en = found["captions"]["zh"], found["captions"]["en"]
        assert (zh["samples"], zh["texts"], zh["other_script"]) == (4, 6, 1)
        assert (en["samples"], en["texts"], en["other_script"]) == (3, 3, 0)
        assert zh["characters"] == spread(Counter({1: 2, 4: 2, 10: 1, 2: 1}))
        assert found["pictures"]["formats"] == {"PNG": 4, "JPEG": 1}  # a, b, c, e, g
        assert (found["pictures"]["width"]["greatest"], found["pictures"]["height"]["greatest"]) == (8, 30)
        assert {reason: bad["samples"] for reason, bad in found["bad"].items()} == {
            "image_damaged": 1,
            "caption_encoding": 1,
        }
        assert "d in " in found["bad"]["image_damaged"]["such_as"]
        assert found["repeated"] == {"samples": 1, "pictures": 1}

    def test_tokens_are_those_of_the_tokenizer(self, shards, tokenizer):
        found = inspect(shards, samples=0, tokenizer=tokenizer, max_length=4).as_json()["captions"]["zh"]
        texts = ["红", "红色的图", "no Chinese", "红", "红色的图", "文字"]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        assert found["tokens"] == spread(Counter(map(len, ids)))
        assert found["truncated"] == sum(len(one) > 4 for one in ids) / 6
        unknown = [one.count(3) for one in ids]
        assert sum(unknown) > 0
        assert found["unknown_tokens"] == sum(unknown) / sum(map(len, ids))
        assert found["texts_with_unknown_tokens"] == sum(count > 0 for count in unknown) / 6

    def test_the_command_prints_and_writes(self, shards, tmp_path, capsys):
        main(["data", "inspect", *shards, "--json", str(tmp_path / "found.json"), "--processes", "1"])
        assert "7 samples in 2 shards" in capsys.readouterr().out
        assert json.loads((tmp_path / "found.json").read_text())["samples"] == 7


@pytest.mark.parametrize("wanted", [1, 3, 10, 0, 99])
def test_samples_are_spread_evenly(wanted):
    counts = [4, 0, 5, 1]
    everything = [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
    found = evenly_spread(counts, wanted)
    expected = len(everything) if wanted in (0, 99) else wanted
    assert len(set(found)) == len(found) == expected
    steps = np.diff([everything.index(place) for place in found])
    assert all(abs(step - 10 / expected) < 1 for step in steps)
    assert evenly_spread([], wanted) == []


def test_spread_is_that_of_numpy():
    values = np.random.default_rng(3).integers(0, 50, 999)
    found = spread(Counter(values.tolist()))
    expected = np.percentile(values, [0, 5, 50, 95, 100], method="inverted_cdf")
    assert [found[name] for name in ("least", "p5", "median", "p95", "greatest")] == expected.tolist()
    assert found["mean"] == pytest.approx(values.mean())


class TestVerify:
    def test_damage_is_listed_with_shard_key_and_reason(self, shards):
        found = verify(shards)
        assert (found.shards, found.samples, found.pictures) == (2, 7, 5)
        assert [(Path(one.shard).name, one.key, one.reason) for one in found.damage] == [
            ("0.tar", "d", "image_damaged"),
            ("1.tar", "g", "caption_encoding"),
        ]

    def test_a_cut_shard_and_one_that_is_none(self, shards, tmp_path):
        data = Path(shards[0]).read_bytes()
        (tmp_path / "cut.tar").write_bytes(data[:1500])
        (tmp_path / "none.tar").write_bytes(b"<html>" * 300)
        found = verify([tmp_path / "cut.tar", tmp_path / "none.tar"])
        assert {(Path(one.shard).name, one.reason) for one in found.damage} >= {
            ("cut.tar", "shard"),
            ("none.tar", "shard_unreadable"),
        }

    def test_parts_are_the_whole(self, shards):
        whole, parts = verify(shards), [verify(shards, part=(i, 2)) for i in range(2)]
        assert sum(part.samples for part in parts) == whole.samples
        assert [damage for part in parts for damage in part.damage] == whole.damage

    def test_the_command_fails_on_damage_alone(self, shards, tmp_path, capsys):
        with pytest.raises(SystemExit, match="1"):
            main(["data", "verify", *shards, "--json", str(tmp_path / "found.json"), "--processes", "1"])
        assert "damaged: 1 image_damaged, 1 caption_encoding" in capsys.readouterr().out
        assert [damage["key"] for damage in json.loads((tmp_path / "found.json").read_text())["damage"]] == ["d", "g"]
        write_shard(tmp_path / "good.tar", {"a": {"png": picture("red"), "zh.txt": "红".encode()}})
        main(["data", "verify", str(tmp_path / "good.tar"), "--processes", "1"])
        assert "no damage found" in capsys.readouterr().out


class TestSheet:
    def test_pictures_stand_in_a_grid(self, tmp_path):
        colors = [(250, 10 * i, 3) for i in range(8)]
        samples = [
            Pictured(f"k{i}", Image.new("RGB", (20, 20), color), {"en": [f"text {i}"], "fr": ["un, deux " * 20]})
            for i, color in enumerate(colors)
        ]
        assert contact_sheet(samples, tmp_path / "sheet.png", title="title", subtitle="sub") is None
        with Image.open(tmp_path / "sheet.png") as sheet:
            pixels = np.asarray(sheet)
        corners = [np.argwhere((pixels == color).all(axis=2)) for color in colors]
        sizes = {tuple(np.ptp(found, axis=0) + 1) for found in corners}
        assert sizes == {(240, 240)}
        tops, lefts = zip(*(found.min(axis=0) for found in corners), strict=True)
        assert len(set(tops[:6])) == len(set(tops[6:])) == 1
        assert lefts[:2] == lefts[6:]

    def test_letters_that_no_font_has_are_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("altclip_train.data.fonts.font_manager.findSystemFonts", list)
        monkeypatch.setattr("altclip_train.data.fonts._in_package", lambda *_: [])
        sample = Pictured("k", Image.new("RGB", (20, 20)), {"zh": ["棒棒糖"], "en": ["a lolly"]})
        note = contact_sheet([sample], tmp_path / "sheet.png", title="t", subtitle="s")
        assert note is not None
        assert note.startswith("no font found has 2 of the letters, such as 棒 糖")
        assert (tmp_path / "sheet.png").is_file()

    def test_without_pictures_there_is_no_sheet(self, tmp_path):
        with pytest.raises(ValueError, match="no sample with a picture"):
            contact_sheet([], tmp_path / "sheet.png", title="t", subtitle="s")


@pytest.mark.parametrize(
    "text", ["a few words that need more than one line", "一个很长的句子，没有空格。" * 3, "x" * 90]
)
def test_wrapped_lines_fit_and_lose_nothing(text):
    fonts = Fonts(find_fonts("abc")[0], 16)
    lines = wrap(text, fonts, 150, 99)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(fonts.width(line) <= 150 + 16 for line in lines)  # closing punctuation may hang out
    assert not any(line[0] in "，。" for line in lines)
    short = wrap(text, fonts, 150, 1)
    assert len(short) == 1
    assert short[0].endswith("…")


def test_bench_names_the_limit(tmp_path, capsys, tokenizer):
    samples = {f"k{i}": {"json": captions(en=f"red {i}", zh=f"红 {i}")} for i in range(200)}
    write_shard(tmp_path / "0.tar", samples)
    tokenizer.save_pretrained(tmp_path)
    options = ["--tokenizer", str(tmp_path), "--seconds", "0.1", "--workers", "0", "--json", str(tmp_path / "b.json")]
    main(["data", "bench", str(tmp_path / "0.tar"), *options])
    assert "limit: " in capsys.readouterr().out
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found["stages"]["seconds"]) == {"read", "captions", "tokenize"}
    assert found["loader"][0]["samples_per_second"] > 0

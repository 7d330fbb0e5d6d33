"""Token ids, pixel values and processor outputs against transformers, each reading the same directory.

transformers' image processor is its Pillow backend; its other one needs torchvision and resizes with other code.
"""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPImageProcessor,
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
    load_tokenizer,
    train_clip_bpe,
    train_sentencepiece,
)

transformers = pytest.importorskip("transformers", minversion="5.23")

pytestmark = pytest.mark.parity

TRAINING_TEXTS = [
    "a photo of a cat sitting on the red sofa",
    "The dog's ball isn't here; they're playing in 2024!",
    "un gato pequeño duerme sobre la cama azul",
    "ein großer Hund läuft über die Straße",
    "一只猫坐在沙发上，一条狗在旁边。",
    "赤いソファーの上にねこがいます。ガラスとパン",
    "고양이가 소파에 앉아 있다",
    "кошка сидит на красном диване",
    "قطة تجلس على الأريكة",
    "बिल्ली सोफे पर बैठी है",
] * 20

_HARD = json.loads((Path(__file__).parent / "hard_strings.json").read_text(encoding="utf-8"))
HARD_STRINGS: list[str] = [*_HARD["texts"].values(), *(text * times for text, times in _HARD["repeated"].values())]
# Words of the vocabulary, pieces of special tokens, and any characters but lone surrogates.
PARTS = st.one_of(
    st.sampled_from([word for text in TRAINING_TEXTS[:10] for word in text.split()]),
    st.sampled_from(["<s>", "</s>", "<mask>", "<pad>", "<unk>", "<|endoftext|>", "<|startoftext|>", "</w>", "<", "▁"]),
    st.sampled_from([" ", "  ", "\n", "\u3000", "\u0085", "\u200b", "\u00ad", "\u0301", "\uff9e", "\ufe0f", "\u200d"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
TEXTS = st.lists(PARTS, max_size=12).map("".join)
MANY = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.25, 0.27)


@pytest.fixture(scope="module")
def xlmr_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xlmr")
    train_sentencepiece(TRAINING_TEXTS, folder / "model", 420)
    transform = ImageTransform(size=24, crop_size=24, mean=MEAN, std=STD)
    AltCLIPProcessor(CLIPImageProcessor(transform), XLMRTokenizer(folder / "model")).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train_clip_bpe(TRAINING_TEXTS, 700).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(xlmr_directory: Path, clip_directory: Path) -> dict[str, tuple[XLMRTokenizer | CLIPTokenizer, Any]]:
    """Our tokenizer and transformers', by kind."""
    return {
        "xlmr": (load_tokenizer(xlmr_directory), transformers.XLMRobertaTokenizer.from_pretrained(xlmr_directory)),
        "clip": (load_tokenizer(clip_directory), transformers.CLIPTokenizer.from_pretrained(clip_directory)),
    }


KINDS = pytest.mark.parametrize("kind", ["xlmr", "clip"])


@KINDS
@pytest.mark.parametrize("length", [10_000, 77, 5, 2])
def test_ids_of_hard_strings_equal_transformers(pairs: dict[str, Any], kind: str, length: int) -> None:
    ours, reference = pairs[kind]
    expected = reference(HARD_STRINGS, truncation=True, max_length=length)["input_ids"]
    for text, got, wanted in zip(HARD_STRINGS, ours.encode_batch(HARD_STRINGS, length), expected, strict=True):
        assert got == wanted, text[:200]


@KINDS
@MANY
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_ids_of_any_strings_equal_transformers(pairs: dict[str, Any], kind: str, texts: list[str]) -> None:
    ours, reference = pairs[kind]
    assert ours(texts).input_ids == reference(texts)["input_ids"]


@KINDS
def test_ids_of_marks_beside_spaces_equal_transformers(pairs: dict[str, Any], kind: str) -> None:
    ours, reference = pairs[kind]
    joining = ("Mn", "Mc", "Me", "Lm", "Sk", "Cc", "Cf", "Zs", "Zl", "Zp")
    marks = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in joining]
    texts = [f"a{mark} {mark}b {mark} e{mark}\u0600 {mark}" for mark in marks]
    assert ours(texts).input_ids == reference(texts)["input_ids"]


@KINDS
@MANY
@given(ids=st.lists(st.integers(0, 430), max_size=20), skip=st.booleans())
def test_decoded_ids_equal_transformers(pairs: dict[str, Any], kind: str, ids: list[int], skip: bool) -> None:
    ours, reference = pairs[kind]
    assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)
    assert ours.batch_decode([ids, ids[:3]], skip) == reference.batch_decode([ids, ids[:3]], skip_special_tokens=skip)


@KINDS
def test_hard_strings_are_decoded_as_transformers_does(pairs: dict[str, Any], kind: str) -> None:
    ours, reference = pairs[kind]
    ids = ours(HARD_STRINGS, padding=True, return_tensors="pt").input_ids
    for skip in (True, False):
        assert ours.batch_decode(ids, skip) == reference.batch_decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids[3], skip) == reference.decode(ids[3], skip_special_tokens=skip)


OPTIONS: list[dict[str, Any]] = [
    {"padding": padding, "truncation": truncation, "max_length": max_length, "return_tensors": tensors}
    for padding in (False, True, "longest", "max_length", "do_not_pad")
    for truncation in (None, False, True, "longest_first", "do_not_truncate")
    for max_length in (None, 3, 9)
    for tensors in (None, "np", "pt")
]


@KINDS
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_every_choice_of_padding_and_truncation_equals_transformers(pairs: dict[str, Any], kind: str) -> None:
    ours, reference = pairs[kind]
    ragged = 0
    for options in OPTIONS:
        for text in (["a photo of a cat"], ["a cat", "", "a photo of a cat on the red sofa"], "a photo of a cat"):
            rows = reference([text] if isinstance(text, str) else text, **options | {"return_tensors": None})[
                "input_ids"
            ]
            if options["return_tensors"] and len({len(row) for row in rows}) > 1:
                ragged += 1  # an error in transformers too, or an array of lists
                with pytest.raises(ValueError, match="padding=True"):
                    ours(text, **options)
                continue
            expected = reference(text, **options)
            got = ours(text, **options)
            assert list(got) == list(expected)
            for name in got:
                assert type(got[name]) is type(expected[name])
                assert getattr(got[name], "dtype", None) == getattr(expected[name], "dtype", None)
                assert np.array_equal(np.asarray(got[name], object), np.asarray(expected[name], object)), options
    assert 0 < ragged < len(OPTIONS)


def test_xlmr_ids_equal_transformers_reading_the_sentencepiece_model_only(xlmr_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes((xlmr_directory / "sentencepiece.bpe.model").read_bytes())
    reference = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path)(HARD_STRINGS).input_ids == reference(HARD_STRINGS)["input_ids"]


def test_a_tokenizer_json_of_transformers_has_the_fingerprint_of_its_model(
    xlmr_directory: Path, tmp_path: Path
) -> None:
    model, converted = tmp_path / "model", tmp_path / "converted"
    model.mkdir()
    (model / "sentencepiece.bpe.model").write_bytes((xlmr_directory / "sentencepiece.bpe.model").read_bytes())
    transformers.XLMRobertaTokenizer.from_pretrained(model).save_pretrained(converted)
    assert not (converted / "sentencepiece.bpe.model").exists()
    assert load_tokenizer(converted).fingerprint == load_tokenizer(model).fingerprint


def test_special_ids_and_length_equal_transformers(xlmr_directory: Path, clip_directory: Path) -> None:
    for directory in (xlmr_directory, clip_directory):
        reference, ours = transformers.AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
        names = ("bos_token_id", "pad_token_id", "eos_token_id", "model_max_length")
        assert [getattr(ours, name) for name in names] == [getattr(reference, name) for name in names]
        assert len(ours) == len(reference)
        assert list(ours.model_input_names) == list(reference.model_input_names)


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_clip_ids_do_not_depend_on_which_files_are_kept(
    clip_directory: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    for name in kept:
        (tmp_path / name).write_bytes((clip_directory / name).read_bytes())
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    # Upper-case look-alikes are special tokens only where tokenizer_config.json says so.
    texts = [text for text in HARD_STRINGS if "<|ENDOFTEXT" not in text]
    assert load_tokenizer(tmp_path)(texts).input_ids == reference(texts)["input_ids"]


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_another_pad_token_is_taken_as_transformers_takes_it(clip_directory: Path, tmp_path: Path, pad: str) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_directory / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}))
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a cat! a!b !", "a"]
    assert load_tokenizer(tmp_path)(texts, padding=True).input_ids == reference(texts, padding=True)["input_ids"]


def noise(width: int, height: int, channels: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pictures() -> dict[str, Image.Image]:
    """8-bit pictures of several modes and sizes, larger and smaller than the crop."""
    sizes = [(24, 24), (80, 80), (24, 31), (50, 24), (101, 67), (67, 101), (7, 5), (1, 1), (3, 40), (300, 200)]
    result = {f"RGB {w}x{h}": Image.fromarray(noise(w, h, 3)) for w, h in sizes}
    colour = Image.fromarray(noise(61, 47, 3))
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV"):
        result[mode] = colour.convert(mode)
    result["RGBA"] = Image.fromarray(noise(61, 47, 4))
    result["LA"] = Image.fromarray(noise(61, 47, 4)).convert("LA")
    palette = colour.convert("P")
    palette.info["transparency"] = 3
    result["P with a transparent colour"] = palette
    grey = colour.convert("L")
    grey.info["transparency"] = 90
    result["L with a transparent grey"] = grey
    for suffix in ("jpeg", "png", "webp", "gif"):
        file = io.BytesIO()
        colour.save(file, suffix)
        result[suffix] = Image.open(file)
    file = io.BytesIO()
    colour.convert("CMYK").save(file, "jpeg")
    result["CMYK jpeg"] = Image.open(file)
    return result


def image_processors(directory: Path, **settings: Any) -> tuple[CLIPImageProcessor, Any]:
    ours = CLIPImageProcessor(ImageTransform(**{"mean": MEAN, "std": STD, "size": 24, "crop_size": 24, **settings}))
    ours.save_pretrained(directory)
    return ours, transformers.CLIPImageProcessorPil.from_pretrained(directory)


@pytest.mark.parametrize(("size", "crop_size"), [(24, 24), (29, 24), (17, 24), (17, 22), ((20, 33), 24)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_pixel_values_are_bit_equal_to_transformers(
    tmp_path: Path, size: int | tuple[int, int], crop_size: int, resample: int
) -> None:
    ours, reference = image_processors(tmp_path, size=size, crop_size=crop_size, resample=resample)
    for name, picture in pictures().items():
        expected = reference(picture.copy(), return_tensors="pt")["pixel_values"]
        assert ours(picture, return_tensors="pt").pixel_values.equal(expected), name


@MANY
@given(short=st.integers(1, 300), long=st.integers(1, 300), wide=st.booleans(), times=st.sampled_from([1, 1, 5]))
def test_pixel_values_of_any_size_are_bit_equal_to_transformers(
    tmp_path_factory: pytest.TempPathFactory, short: int, long: int, wide: bool, times: int
) -> None:
    width, height = (long * times, short) if wide else (short, long * times)
    ours, reference = image_processors(tmp_path_factory.mktemp("any"))
    picture = Image.fromarray(noise(width, height, 3))
    got, expected = (one(picture, return_tensors="np")["pixel_values"] for one in (ours, reference))
    if max(width, height) / min(width, height) <= 64:
        assert np.array_equal(got, expected)
    else:  # what the crop discards of so long a picture is never computed
        assert np.abs(got - expected).max() < 2.01 / 255 / min(STD)


def test_pixel_values_at_full_size_are_bit_equal_to_transformers(tmp_path: Path) -> None:
    ours, reference = image_processors(tmp_path, size=224, crop_size=224)
    for width, height in ((640, 480), (333, 500), (224, 224), (1999, 1500), (225, 223)):
        picture = Image.fromarray(noise(width, height, 3))
        expected = reference(picture, return_tensors="pt")["pixel_values"]
        assert ours(picture, return_tensors="pt").pixel_values.equal(expected)


def test_arrays_and_tensors_are_taken_as_transformers_takes_them(tmp_path: Path) -> None:
    ours, reference = image_processors(tmp_path)
    last = noise(30, 40, 3)
    first = np.ascontiguousarray(np.moveaxis(last, -1, 0))
    forms: dict[str, Any] = {
        "(H, W, 3)": last,
        "(3, H, W)": first,
        "(H, W, 1)": last[..., :1],
        "(H, W, 4)": noise(30, 40, 4),
        "three rows, so either": noise(30, 3, 3),
        "batch": np.stack([last, 255 - last]),
        "int64": last.astype(np.int64),
        "whole floats": last.astype(np.float32),
        "tensor": torch.from_numpy(first),
        "batch of tensors": torch.from_numpy(np.stack([first, 255 - first])),
        "list": [torch.from_numpy(last), torch.from_numpy(first)],
        "nested lists": [[Image.fromarray(last)], [Image.fromarray(last)]],
    }
    for name, form in forms.items():
        got, expected = (one(form, return_tensors="pt")["pixel_values"] for one in (ours, reference))
        assert got.equal(expected), name
        lists, wanted = (one(form)["pixel_values"] for one in (ours, reference))
        assert [type(one) for one in lists] == [type(one) for one in wanted]
        assert all(np.array_equal(one, other) for one, other in zip(lists, wanted, strict=True)), name


def test_floats_are_taken_as_transformers_takes_them_or_refused(tmp_path: Path) -> None:
    ours, reference = image_processors(tmp_path)
    shares = np.random.default_rng(0).random((40, 30, 3))
    for form in (shares, shares.astype(np.float32), np.zeros_like(shares), torch.from_numpy(shares).permute(2, 0, 1)):
        got, expected = (one(form, return_tensors="pt", do_rescale=False)["pixel_values"] for one in (ours, reference))
        assert got.equal(expected)
    # Without do_rescale=False transformers divides them by 255 once more, so that all pictures are nearly black.
    black = reference(np.zeros((24, 24, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert (reference(shares, return_tensors="pt")["pixel_values"] - black).abs().max() < 1.01 / 255 / min(STD)
    with pytest.raises(ValueError, match="pass do_rescale=False"):
        ours(shares)


def test_a_turned_picture_is_upright_as_transformers_makes_it_from_a_path(tmp_path: Path) -> None:
    ours, reference = image_processors(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / "turned.png")
    Image.fromarray(noise(40, 30, 3)).save(path, exif=exif)
    upright = reference(path, return_tensors="pt")["pixel_values"]
    assert ours(path, return_tensors="pt").pixel_values.equal(upright)
    # Opened by the caller, transformers leaves it on its side; here it does not matter who opened it.
    assert ours(Image.open(path), return_tensors="pt").pixel_values.equal(upright)
    assert not reference(Image.open(path), return_tensors="pt")["pixel_values"].equal(upright)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_whole_processor_outputs_equal_transformers(xlmr_directory: Path, tensors: str | None) -> None:
    reference = transformers.AltCLIPProcessor.from_pretrained(xlmr_directory)
    ours = AltCLIPProcessor.from_pretrained(xlmr_directory)
    texts = ["a photo of a cat", "一张狗的照片", ""]
    images = [Image.fromarray(noise(40, 30, 3)), Image.fromarray(noise(24, 24, 3))]
    calls: list[dict[str, Any]] = [
        {"text": texts, "images": images, "padding": True},
        {"text": texts, "padding": "max_length", "max_length": 20, "truncation": True},
        {"text": texts, "images": images[0], "padding": True, "truncation": True},
        {"text": "a photo of a cat"},
        {"images": images},
        {"images": images[1]},
    ]
    assert ours.model_input_names == reference.model_input_names
    for arguments in calls:
        got, expected = (one(**arguments, return_tensors=tensors) for one in (ours, reference))
        assert list(got) == list(expected)
        for name in got:
            assert type(got[name]) is type(expected[name])
            assert np.array_equal(np.asarray(got[name]), np.asarray(expected[name])), name
            assert np.asarray(got[name]).dtype == np.asarray(expected[name]).dtype
        if tensors == "pt":
            halves = [one.to("cpu", torch.float16) for one in (got, expected)]
            assert [value.dtype for value in halves[0].values()] == [value.dtype for value in halves[1].values()]
    assert ours(images[0], texts).input_ids == reference(images[0], texts).input_ids  # by position


def test_our_processor_loads_what_transformers_saves(xlmr_directory: Path, tmp_path: Path) -> None:
    transformers.AltCLIPProcessor.from_pretrained(xlmr_directory).save_pretrained(tmp_path)
    saved = sorted(path.name for path in tmp_path.iterdir())
    got, expected = (
        AltCLIPProcessor.from_pretrained(folder)(text="a cat", images=Image.fromarray(noise(40, 30, 3)))
        for folder in (tmp_path, xlmr_directory)
    )
    assert got.input_ids == expected.input_ids, saved
    assert np.array_equal(got.pixel_values, expected.pixel_values), saved
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(xlmr_directory).fingerprint

"""Token ids and pixel values against transformers, each reading the directory that our processor saved."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPTokenizer,
    ImageTransform,
    XLMRTokenizer,
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

HARD_STRINGS = [
    "",
    " ",
    "\n\t  \r\n",
    "cat",
    "  a   photo\tof\n a  cat  ",
    "ＡＢＣ　１２３！？ｃａｔ",
    "ｶﾞﾗｽとﾊﾟﾝ ｶﾞ ﾊﾟ",
    "ガ が か\u3099 カ\u3099",
    "cafe\u0301 café CAFÉ ÀÉÎ",
    "ﬁne ½ ² ㎏ Ⅷ ℃ ㍿",
    "😀😃 a cat 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️",
    "猫cat狗dog고양이кот قطة बिल्ली क्षि",
    "a\x00b\x01c\x0bd\x1fe\x7ff",
    "a\u0085b\u00a0c\u1680d\u2028e\u2029f\u202fg\u3000h",
    "\ufeffcat\u200b dog\u200d sofa\u00ad red\u2060",
    "the▁red▁sofa ▁ ▁▁",
    "<s>",
    "a <s> cat </s> dog",
    "cat<s>dog</s></s>",
    "<pad><unk><mask> a<mask>b  <mask>  c",
    "<S> </S> <MASK> < s > <s",
    "<|startoftext|> a cat <|endoftext|>",
    "cat<|endoftext|>dog",
    "<|ENDOFTEXT|> <|StartOfText|> <|endoftext| >",
    "a photo</w> of</w>",
    "İstanbul ĞÜŞ ıi ΑΣ ΣΑΣ ŉ ǅ ẞ",
    "it's they're I'VE we'll DON'T 's' ''t",
    "1234567890 3.14 1,000 x²+y²",
    "!!!???... --- ((())) @#$%^&*",
    "𝒜𝓃 𝔸 𝟘𝟙 𐍈 \U0010ffff \ue000",
    "e" + "\u0301" * 40,
    "a" * 3000,
    "猫" * 1500,
    "a cat " * 500,
    "<s>" * 200,
    "صَلَّى اللهُ ﷺ ‏rtl‎",
]

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.25, 0.27)


@pytest.fixture(scope="module")
def xlmr_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xlmr")
    train_sentencepiece(TRAINING_TEXTS, folder / "model", 420)
    transform = ImageTransform(size=24, crop_size=24, mean=MEAN, std=STD)
    AltCLIPProcessor(transform, XLMRTokenizer(folder / "model")).save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    train_clip_bpe(TRAINING_TEXTS, 700).save_pretrained(folder)
    return folder


def random_strings(count: int) -> list[str]:
    """Strings of characters from all planes, words that were trained on, and special-token look-alikes."""
    generator = random.Random(5)
    blocks = [(0, 0x300), (0x300, 0x370), (0x600, 0x700), (0x900, 0x980), (0x2000, 0x2100), (0x3040, 0x3100)]
    blocks += [(0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFE00, 0x10000), (0x1F300, 0x1F700), (0x1100, 0x1200)]
    words = [word for text in TRAINING_TEXTS[:10] for word in text.split()]
    words += ["<s>", "</s>", "<mask>", "<|endoftext|>", "<|startoftext|>", "</w>", " ", "\n"]
    strings = []
    for _ in range(count):
        parts = []
        for _ in range(generator.randint(1, 12)):
            if generator.random() < 0.5:
                parts.append(generator.choice(words))
            else:
                parts.append(chr(generator.randrange(*generator.choice(blocks))))
        strings.append(generator.choice(["", " "]).join(parts))
    return strings


@pytest.mark.parametrize("length", [77, 5, 2])
def test_xlmr_ids_equal_transformers(xlmr_directory: Path, length: int) -> None:
    reference = transformers.XLMRobertaTokenizer.from_pretrained(xlmr_directory)
    texts = HARD_STRINGS + random_strings(2000)
    expected = reference(texts, truncation=True, max_length=length)["input_ids"]
    assert XLMRTokenizer.from_pretrained(xlmr_directory).encode_batch(texts, length) == expected


def test_xlmr_ids_equal_transformers_reading_the_sentencepiece_model_only(xlmr_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes((xlmr_directory / "sentencepiece.bpe.model").read_bytes())
    reference = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path)
    texts = HARD_STRINGS + random_strings(500)
    expected = reference(texts)["input_ids"]
    assert XLMRTokenizer.from_pretrained(tmp_path).encode_batch(texts, 10_000) == expected


def test_xlmr_special_ids_equal_transformers(xlmr_directory: Path) -> None:
    reference = transformers.AutoTokenizer.from_pretrained(xlmr_directory)
    ours = XLMRTokenizer.from_pretrained(xlmr_directory)
    assert (len(reference), reference.bos_token_id, reference.pad_token_id, reference.eos_token_id) == (
        ours.vocab_size,
        ours.bos_id,
        ours.pad_id,
        ours.eos_id,
    )
    assert reference.mask_token_id == ours.vocab_size - 1
    assert reference.model_max_length == 77


@pytest.mark.parametrize("length", [77, 5, 2])
def test_clip_ids_equal_transformers(clip_directory: Path, length: int) -> None:
    reference = transformers.CLIPTokenizer.from_pretrained(clip_directory)
    texts = HARD_STRINGS + random_strings(2000)
    expected = reference(texts, truncation=True, max_length=length)["input_ids"]
    assert CLIPTokenizer.from_pretrained(clip_directory).encode_batch(texts, length) == expected


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_clip_ids_do_not_depend_on_which_files_are_kept(
    clip_directory: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    for name in kept:
        (tmp_path / name).write_bytes((clip_directory / name).read_bytes())
    reference = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    # Upper-case look-alikes are special tokens only where tokenizer_config.json says so.
    texts = [text for text in HARD_STRINGS if "<|ENDOFTEXT" not in text] + random_strings(500)
    assert CLIPTokenizer.from_pretrained(tmp_path).encode_batch(texts, 10_000) == reference(texts)["input_ids"]


def test_decoded_texts_equal_transformers(xlmr_directory: Path, clip_directory: Path) -> None:
    texts = ["a photo of a cat", "The dog's ball", "un gato pequeño"]
    for ours, reference in (
        (XLMRTokenizer.from_pretrained(xlmr_directory), transformers.XLMRobertaTokenizer),
        (CLIPTokenizer.from_pretrained(clip_directory), transformers.CLIPTokenizer),
    ):
        oracle = reference.from_pretrained(xlmr_directory if ours.pad_id == 1 else clip_directory)
        ids = ours.encode_batch(texts, 77)
        assert [ours.decode(one) for one in ids] == oracle.batch_decode(ids, skip_special_tokens=True)


def noise(width: int, height: int, channels: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pictures() -> dict[str, Image.Image]:
    """8-bit pictures of several modes and sizes, larger and smaller than the crop."""
    sizes = [
        (24, 24),
        (80, 80),
        (24, 31),
        (50, 24),
        (101, 67),
        (67, 101),
        (7, 5),
        (1, 1),
        (3, 40),
        (300, 200),
    ]
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


@pytest.mark.parametrize(("size", "crop_size"), [(24, 24), (29, 24), (17, 24), (17, 22), ((20, 33), 24)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_pixel_values_are_bit_equal_to_transformers(
    tmp_path: Path, size: int | tuple[int, int], crop_size: int, resample: int
) -> None:
    ours = ImageTransform(size=size, crop_size=crop_size, mean=MEAN, std=STD, resample=resample)
    ours.save_pretrained(tmp_path)
    reference = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    for name, picture in pictures().items():
        expected = reference(picture.copy(), return_tensors="pt")["pixel_values"][0]
        assert ours(picture).equal(expected), name


def test_pixel_values_of_a_very_long_picture_are_within_one_grey_level(tmp_path: Path) -> None:
    ours = ImageTransform(size=24, crop_size=24, mean=(0, 0, 0), std=(1, 1, 1))
    ours.save_pretrained(tmp_path)
    reference = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    for picture in (Image.fromarray(noise(3, 211, 3)), Image.fromarray(noise(1707, 31, 3))):
        expected = reference(picture, return_tensors="pt")["pixel_values"][0]
        assert (ours(picture) - expected).abs().max() < 1.01 / 255


def test_transformers_processor_loads_our_directory_and_gives_equal_inputs(xlmr_directory: Path) -> None:
    reference = transformers.AltCLIPProcessor.from_pretrained(xlmr_directory)
    ours = AltCLIPProcessor.from_pretrained(xlmr_directory)
    texts = ["a photo of a cat", "一张狗的照片", ""]
    images = [Image.fromarray(noise(40, 30, 3)), Image.fromarray(noise(24, 24, 3))]
    got = ours(text=texts, images=images, return_tensors="pt", padding=True)
    expected = reference(text=texts, images=images, return_tensors="pt", padding=True)
    assert set(got) == set(expected)
    for name in got:
        assert got[name].equal(expected[name]), name
        assert got[name].dtype == expected[name].dtype, name


def test_our_processor_loads_what_transformers_saves(xlmr_directory: Path, tmp_path: Path) -> None:
    transformers.AltCLIPProcessor.from_pretrained(xlmr_directory).save_pretrained(tmp_path)
    saved = sorted(path.name for path in tmp_path.iterdir())
    got = AltCLIPProcessor.from_pretrained(tmp_path)(text=["a cat"], images=Image.fromarray(noise(40, 30, 3)))
    expected = AltCLIPProcessor.from_pretrained(xlmr_directory)(
        text=["a cat"], images=Image.fromarray(noise(40, 30, 3))
    )
    assert got.input_ids.equal(expected.input_ids), saved
    assert got.pixel_values.equal(expected.pixel_values), saved

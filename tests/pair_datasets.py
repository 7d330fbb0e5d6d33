"""Small shards of both stages, datasets of them, and batches as texts."""

import io
import json
import tarfile
from itertools import pairwise

import numpy as np
from PIL import Image

from altclip_train.data.dataset import PairDataset
from altclip_train.data.decoders import ImageTextDecoder, TextPairDecoder
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


class FirstPixel:
    """In place of an image transform: the colour of the corner."""

    def cropped(self, image):
        return np.asarray(image.convert("RGB"))[:1, :1]


def shift_red(image, generator):
    return Image.new("RGB", image.size, (int(generator.integers(1, 256)), 0, 0))


def text_decoder(**arguments):
    tokenizer = BytesTokenizer()
    defaults = {"student_tokenizer": tokenizer, "teacher_tokenizer": tokenizer, "max_length": 99}
    return TextPairDecoder(**{**defaults, **arguments})


def image_decoder(**arguments):
    defaults = {"tokenizer": BytesTokenizer(), "image_transform": FirstPixel(), "max_length": 99}
    return ImageTextDecoder(**{**defaults, **arguments})


def text_pairs(source, plan_seed=0, **arguments):
    sources = source if isinstance(source, list) else [source]
    return PairDataset(sources=sources, plan_seed=plan_seed, decoder=text_decoder(**arguments))


def image_texts(source, plan_seed=0, **arguments):
    sources = source if isinstance(source, list) else [source]
    return PairDataset(sources=sources, plan_seed=plan_seed, decoder=image_decoder(**arguments))


def parallel_texts(directory):
    """Ten entries in three languages."""
    languages = ("en", "zh", "ja")
    entries = [(f"{n:03d}", {"json": {language: f"{language} {n}" for language in languages}}) for n in range(10)]
    return write_tar(directory / "parallel.tar", entries)


def pictures_with_captions(directory):
    """Ten pictures whose red is their number; two English captions and a Chinese one each."""
    samples = [
        (f"{n:03d}", {"png": png((n, 0, 0)), "json": {"en": [f"a {n}", f"b {n}"], "zh": f"甲 {n}"}}) for n in range(10)
    ]
    return write_tar(directory / "pictures.tar", samples)

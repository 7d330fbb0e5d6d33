"""Tiny folders in the layouts of published benchmarks."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image


def picture(red: int) -> bytes:
    """A PNG, whatever its file will be called: real benchmarks have such files too."""
    data = io.BytesIO()
    Image.new("RGB", (3, 2), (red, 0, 0)).save(data, "PNG")
    return data.getvalue()


def write_pictures(folder: Path, names: Sequence[str], reds: Sequence[int] | None = None) -> Path:
    """Pictures of these names, the first quite black, the next ones redder, or as ``reds`` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, red in zip(names, reds or range(len(names)), strict=True):
        (folder / name).write_bytes(picture(red))
    return folder


def write_synsets(folder: Path, pictures: Mapping[str, Sequence[str]]) -> Path:
    """A folder for each class."""
    for synset, names in pictures.items():
        write_pictures(folder / synset, names)
    return folder


def class_names_wheel(folder: Path) -> Path:
    """What is read of CLIP_benchmark's wheel, for an ImageNet of three made-up synsets."""
    lists = {
        "en_classnames": {"imagenet1k": ["fish", "sunglasses", "sunglasses"]},
        "en_zeroshot_classification_templates": {"imagenet1k": ["a photo of a {c}.", "many {c}."]},
        "cn_classnames": {"imagenet1k": ["鱼", "太阳镜", "太阳镜"]},
        "cn_zeroshot_classification_templates": {"imagenet1k": ["{c}的照片。", "许多{c}。"]},
        "babel_imagenet": {"EN": [[0, 1, 2], ["fish", "shades", "glasses"]], "ZH": [[2, 1], ["丙", "乙"]]},
        "nllb_dist13b_prompts": {"EN": ["a photo of a {}"], "ZH": ["照片 {}"]},
    }
    builder = (
        "import torchvision\n"
        "def build_dataset(name):\n"
        "    imagenet_a_wnids = ['n01', 'n03']\n"
        "    imagenet_r_wnids = {'n03', 'n01'}\n"
        "all_imagenet_wordnet_ids = ['n01', 'n02', 'n03']\n"
    )
    wheel = folder / "clip_benchmark-1.6.2-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in lists.items():
            archive.writestr(f"clip_benchmark/datasets/{name}.json", json.dumps(content))
        archive.writestr("clip_benchmark/datasets/builder.py", builder)
    return wheel

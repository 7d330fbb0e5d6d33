"""A few sentences in three languages, and files that hold texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ENGLISH = ["a photo of a cat on the red sofa", "the dog is near the blue house", "two small birds sit in a tree"]
CHINESE = ["一只猫坐在红色沙发上", "狗在房子旁边", "两只小鸟"]
SPANISH = ["el gato duerme sobre la cama", "un perro pequeño"]


def text_file(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path

"""The WebDataset layout of CLIP_benchmark, local or remote.

    ROOT/test/{nshards.txt, 0.tar, 1.tar, ...}      members KEY.{webp,png,jpg,jpeg} and KEY.cls, KEY.npy or KEY.txt
    ROOT/classnames.txt                             one name a line, the line number is the label
    ROOT/zeroshot_classification_templates.txt      one template a line with the placeholder {c}

Plain names hold English. Another language lies beside them as ``KEY.zh.txt``, ``classnames.zh.txt`` and
``zeroshot_classification_templates.zh.txt``; the code ``cn`` is read as ``zh``, ``jp`` as ``ja``. A caption
file holds one caption a line. A cls is the number of a class; where a picture shows several classes, a npy holds
a one for each of them and a zero for each other.
"""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from altclip_train.data.cache import ShardCache
from altclip_train.data.remote import read_file
from altclip_train.data.samples import (
    IMAGE_FIELDS,
    BadSample,
    decode_captions,
    is_caption_field,
    language_spellings,
    normalize_language,
)
from altclip_train.data.shards import ShardReader
from altclip_train.data.urls import RemoteUrl, Shard
from altclip_train.evaluation.readers.pictures import Pictures, texts_sha256

LABELS = ("cls", "npy")


class Sample(NamedTuple):
    """What is kept of a sample: all but its picture's bytes."""

    shard: int
    number: int  # in its shard
    key: str
    where: str  # shard and key, for messages
    picture: str  # field of the picture
    texts: dict[str, bytes]  # label and captions by field


class ShardPictures(Pictures):
    """The shards of one split: labels and captions in memory, pictures read on demand.

    Raises FileNotFoundError for missing folders and shards, ValueError for damaged or empty ones.
    """

    def __init__(self, root: Shard, split: str, *, benchmark: str) -> None:
        self._reader = ShardReader(_shards(root, split, benchmark))
        self._lock = threading.Lock()  # readers of shards keep files open, and are for one thread
        # Training goes on without what a damaged shard has lost; a score would be that of other data.
        if problems := self._reader.problems:
            raise ValueError(f"a shard is damaged: {'; '.join(problems)}; replace it")
        self._reader.will_need(range(len(self._reader.shards)))
        self.samples: list[Sample] = []
        digests: list[str] = []
        for shard, count in enumerate(self._reader.counts):
            for number in range(count):
                fields = self._reader.read(shard, number)
                key = self._reader.key(shard, number)
                where = f"{self._reader.shards[shard]}: {key}"
                picture = _picture_field(fields, where)
                texts = {name: data for name, data in fields.items() if name in LABELS or is_caption_field(name)}
                self.samples.append(Sample(shard, number, key, where, picture, texts))
                digests.append(hashlib.sha256(fields[picture]).hexdigest())
        if not digests:
            raise ValueError(f"{join(root, split)} holds no samples")
        self.sha256 = texts_sha256(*digests)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].key

    def where(self, index: int) -> str:
        return f"{self.samples[index].where}.{self.samples[index].picture}"

    def read(self, index: int) -> bytes:
        sample = self.samples[index]
        with self._lock:
            return self._reader.read(sample.shard, sample.number)[sample.picture]

    def captions(self, languages: list[str]) -> dict[str, list[list[str]]]:
        """Captions of each picture by language."""
        by_picture = [_captions(sample, languages) for sample in self.samples]
        return {language: [captions[language] for captions in by_picture] for language in languages}

    def labels(self, num_classes: int) -> list[int]:
        """The class of each picture."""
        return [_label(sample, num_classes) for sample in self.samples]

    @property
    def multi_label(self) -> bool:
        """Whether labels say of each class whether a picture shows it."""
        return "npy" in self.samples[0].texts

    def targets(self, num_classes: int) -> np.ndarray:
        """(N, C) bool: the classes that each picture shows."""
        return np.stack([_targets(sample, num_classes) for sample in self.samples])


def holds_shards(root: Shard, split: str) -> bool:
    """Whether ``root`` is a folder in this layout; a remote root is taken to be one."""
    return isinstance(root, RemoteUrl) or (root / split / "nshards.txt").is_file() or any(root.glob("*/nshards.txt"))


def join(root: Shard, name: str) -> Shard:
    """What lies below a root."""
    return root.beside(f"/{name}") if isinstance(root, RemoteUrl) else root / name


def read_language_file(root: Shard, stem: str, language: str) -> list[str]:
    """Lines of ``stem`` in one language. Raises FileNotFoundError, and ValueError for an empty line."""
    if isinstance(root, RemoteUrl):
        return _remote_language_file(root, stem, language)
    plain = root / f"{stem}.txt"
    others = {path: path.name[len(stem) + 1 : -len(".txt")] for path in sorted(root.glob(f"{stem}.*.txt"))}
    found = [path for path, code in others.items() if normalize_language(code) == language]
    if language == "en" and plain.is_file():
        found.append(plain)
    names = ", ".join(path.name for path in found or sorted(root.glob(f"{stem}*.txt")))
    if not found:
        raise FileNotFoundError(f"{root} has no {stem}.{language}.txt, it has {names or f'no {stem} file'}")
    if len(found) > 1:
        raise ValueError(f"{root} has several files for {language!r}: {names}; keep one")
    return lines(found[0].read_text(encoding="utf-8-sig"), found[0])


def _remote_language_file(root: RemoteUrl, stem: str, language: str) -> list[str]:
    names = [f"{stem}.{code}.txt" for code in language_spellings(language)] + [f"{stem}.txt"] * (language == "en")
    for name in names:
        try:
            text = read_file(root.beside(f"/{name}"), ShardCache().patience)
        except (FileNotFoundError, PermissionError):  # object stores that may not be listed deny what is absent
            continue
        return lines(text.decode("utf-8-sig"), root.beside(f"/{name}"))
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}")


def lines(text: str, where: object) -> list[str]:
    """Lines of a text, where the line number means something: only the last may be empty."""
    found = [line.strip() for line in text.splitlines()]
    while found and not found[-1]:
        found.pop()
    if not found or not all(found):
        problem = f"line {found.index('') + 1} is empty" if found else "the file is empty"
        raise ValueError(f"{where}: {problem}, expected one entry a line")
    return found


def _shards(root: Shard, split: str, benchmark: str) -> list[Shard]:
    count_file = join(join(root, split), "nshards.txt")
    text = _local_count(root, split, benchmark) if isinstance(root, Path) else None
    if text is None:
        assert isinstance(count_file, RemoteUrl)
        text = read_file(count_file, ShardCache().patience).decode("utf-8", "replace")
    text = text.strip()
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{count_file} holds {text[:40]!r}, expected the number of shards")
    shards = [join(join(root, split), f"{number}.tar") for number in range(int(text))]
    for shard in shards:
        if isinstance(shard, Path) and not shard.is_file():
            raise FileNotFoundError(f"{shard} is missing: {count_file} states {len(shards)} shards")
    return shards


def _local_count(root: Path, split: str, benchmark: str) -> str:
    folder = root / split
    if not folder.is_dir():
        splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
        raise FileNotFoundError(
            f"{benchmark}: {root} has no split {split!r}, it has {', '.join(splits) or 'none'}; "
            f"pass eval.{benchmark}.split=NAME"
        )
    count_file = folder / "nshards.txt"
    if not count_file.is_file():
        raise FileNotFoundError(f"{count_file} is missing: it states the number of shards, 0.tar to N-1.tar")
    return count_file.read_text(encoding="utf-8")


def _picture_field(fields: dict[str, bytes], where: str) -> str:
    pictures = [field for field in IMAGE_FIELDS if field in fields]
    if len(pictures) != 1:
        members = ", ".join(sorted(fields))
        raise ValueError(f"{where} needs one picture ({', '.join(IMAGE_FIELDS)}), it has {members}")
    return pictures[0]


def _captions(sample: Sample, languages: list[str]) -> dict[str, list[str]]:
    """Captions of one sample by language; a plain txt is English, or the one language asked for if alone."""
    alone = len(languages) == 1 and not any(field.endswith(".txt") for field in sample.texts)
    try:
        language = languages[0] if alone else "en"
        captions = decode_captions(sample.texts, default_language=language, bare_punctuation=True)
    except BadSample as error:
        raise ValueError(f"{sample.where} has no usable captions ({error})") from error
    for language in languages:
        if language not in captions:
            found = ", ".join(sorted(captions))
            raise ValueError(
                f"{sample.where} has no captions in {language!r}, only in {found} (a plain txt is English "
                "unless it is the only txt and one other language alone is asked for)"
            )
    return captions


def _label(sample: Sample, num_classes: int) -> int:
    if "cls" not in sample.texts:
        raise ValueError(f"{sample.where} has no label cls, it has {', '.join(sorted(sample.texts)) or 'no texts'}")
    text = sample.texts["cls"].decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= num_classes:
        raise ValueError(f"{sample.where}: cls is {text[:40]!r}, expected a class number below {num_classes}")
    return int(text)


def _targets(sample: Sample, num_classes: int) -> np.ndarray:
    expected = f"expected an array of {num_classes} zeros and ones"
    if "npy" not in sample.texts:
        raise ValueError(f"{sample.where} has no npy, which the first sample has: {expected}")
    try:
        array = np.lib.format.read_array(io.BytesIO(sample.texts["npy"]), allow_pickle=False)
    except (ValueError, MemoryError) as error:  # MemoryError: its header states more than there is
        raise ValueError(f"{sample.where}: npy cannot be read ({error}), {expected}") from error
    if array.shape != (num_classes,) or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{sample.where}: npy has shape {array.shape} and type {array.dtype}, {expected}")
    return array.astype(bool)

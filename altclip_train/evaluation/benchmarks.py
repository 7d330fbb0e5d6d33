"""Retrieval and zero-shot benchmarks in the WebDataset layout of CLIP_benchmark.

    ROOT/test/{nshards.txt, 0.tar, 1.tar, ...}      members KEY.{webp,png,jpg,jpeg} and KEY.cls or KEY.txt
    ROOT/classnames.txt                             one name a line, the line number is the label
    ROOT/zeroshot_classification_templates.txt      one template a line with the placeholder {c}

Plain names hold English. Another language lies beside them as ``KEY.zh.txt``, ``classnames.zh.txt`` and
``zeroshot_classification_templates.zh.txt``; the code ``cn`` is read as ``zh``, ``jp`` as ``ja``. A caption
file holds one caption a line.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from altclip_train.data.index import ShardIndex
from altclip_train.data.samples import (
    IMAGE_FIELDS,
    BadSample,
    decode_captions,
    decode_image,
    is_caption_field,
    normalize_language,
)
from altclip_train.data.shards import ShardReader
from altclip_train.evaluation.examples import retrieval_examples
from altclip_train.evaluation.results import BenchmarkResult
from altclip_train.evaluation.retrieval import retrieval_chance, retrieval_outcome
from altclip_train.evaluation.zero_shot import build_classifier, zero_shot_chance, zero_shot_outcome

if TYPE_CHECKING:
    from PIL import Image

    from altclip_train.evaluation.encoder import FeatureEncoder


GENERIC = "generic"  # protocol of a folder that is taken as it is


class Benchmark(ABC):
    """One split of one folder, in one or several languages.

    Args:
        language: a BCP-47 code or several; the pictures are encoded once for all of them.
        starter: directory of the starter data that ``root`` lies in; it is built when it is not there yet.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str = "test",
        name: str,
        starter: str | Path | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.languages = _languages(name, language)
        self.split = split
        self.name = name
        self.starter = starter
        self._folder: SplitFolder | None = None

    def prepare(self) -> SplitFolder:
        """Read and check everything once, but for decoding the pictures; nothing is encoded before."""
        if self._folder is None:
            if self.starter is not None:
                from altclip_train.data.starter import ensure_starter

                ensure_starter(self.starter)
            folder = SplitFolder(self.root, self.split, benchmark=self.name)
            self._read(folder)
            self._folder = folder
        return self._folder

    def evaluate(self, encoder: FeatureEncoder) -> list[BenchmarkResult]:
        """One result per language. Raises ValueError naming a picture that cannot be decoded."""
        folder = self.prepare()
        image_features = encoder.encode_images(folder.pictures(), cache_key=folder.pictures_sha256)  # (N, D)
        return [self._evaluate(encoder, image_features, language) for language in self.languages]

    def picture_names(self) -> list[str]:
        """The key of each picture, in order."""
        return [sample.where.rpartition(": ")[2] for sample in self.prepare().samples]

    def show(self, numbers: Iterable[int]) -> dict[int, Image.Image]:
        """Some of the pictures, by their number."""
        wanted = set(numbers)
        return {n: load() for n, load in enumerate(self.prepare().pictures()) if n in wanted}

    @abstractmethod
    def _read(self, folder: SplitFolder) -> None: ...

    @abstractmethod
    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult: ...


class RetrievalBenchmark(Benchmark):
    """Texts find their picture and pictures one of their texts; every caption is a query."""

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str = "test",
        name: str = "retrieval",
        starter: str | Path | None = None,
    ) -> None:
        super().__init__(root=root, language=language, split=split, name=name, starter=starter)
        self._captions: dict[str, list[str]] = {}
        self._text_to_image: dict[str, torch.Tensor] = {}
        self._sha256: dict[str, str] = {}

    def _read(self, folder: SplitFolder) -> None:
        captions = [_captions(sample, self.languages) for sample in folder.samples]
        for language in self.languages:
            by_image = [by_language[language] for by_language in captions]
            self._captions[language] = [caption for texts in by_image for caption in texts]
            owners = [image for image, texts in enumerate(by_image) for _ in texts]
            self._text_to_image[language] = torch.tensor(owners)
            self._sha256[language] = _sha256(folder.pictures_sha256, *("\n".join(texts) for texts in by_image))

    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult:
        captions, text_to_image = self._captions[language], self._text_to_image[language]
        text_features = encoder.encode_texts(captions)  # (M, D)
        return BenchmarkResult.of(
            retrieval_outcome(image_features, text_features, text_to_image),
            benchmark=self.name,
            language=language,
            protocol=GENERIC,
            description=f"retrieval/{self.split}: R@K = any positive among the best K; every caption is a query",
            counts={"images": len(image_features), "texts": len(captions)},
            data_sha256=self._sha256[language],
            chance=retrieval_chance(len(image_features), text_to_image),
            pictures=self.picture_names(),
            texts=captions,
            examples=retrieval_examples(image_features, text_features, text_to_image),
        )


class ZeroShotBenchmark(Benchmark):
    """Pictures are given the class whose prompts fit best."""

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str = "test",
        name: str = "zero_shot",
        starter: str | Path | None = None,
    ) -> None:
        super().__init__(root=root, language=language, split=split, name=name, starter=starter)
        self._labels = torch.empty(0, dtype=torch.int64)
        self._prompts: dict[str, tuple[list[str], list[str]]] = {}  # class names and templates
        self._sha256: dict[str, str] = {}

    def _read(self, folder: SplitFolder) -> None:
        for language in self.languages:
            class_names = _read_lines(_language_file(self.root, "classnames", language))
            templates = _read_lines(_language_file(self.root, "zeroshot_classification_templates", language))
            self._prompts[language] = class_names, templates
        counts = {language: len(names) for language, (names, _) in self._prompts.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{self.root}: the languages differ in their number of class names: {counts}")
        labels = [_label(sample, num_classes=max(counts.values())) for sample in folder.samples]
        self._labels = torch.tensor(labels)
        for language, (class_names, templates) in self._prompts.items():
            texts = (str(labels), "\n".join(class_names), "\n".join(templates))
            self._sha256[language] = _sha256(folder.pictures_sha256, *texts)

    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult:
        class_names, templates = self._prompts[language]
        classifier = build_classifier(encoder.encode_texts, class_names, templates)  # (C, D)
        description = f"zero-shot/{self.split}: mean of normalised prompt features over {len(templates)} templates"
        if repeated := len(class_names) - len(set(class_names)):
            description += f"; {repeated} class names are repeated, their classes cannot be told apart"
        return BenchmarkResult.of(
            zero_shot_outcome(image_features, classifier, self._labels),
            benchmark=self.name,
            language=language,
            protocol=GENERIC,
            description=description,
            counts={"images": len(image_features), "classes": len(class_names)},
            data_sha256=self._sha256[language],
            chance=zero_shot_chance(len(class_names)),
            pictures=self.picture_names(),
            texts=class_names,
        )


class Sample(NamedTuple):
    """What is kept of a sample: all but its picture's bytes."""

    where: str  # shard and key, for messages
    picture: str  # field of the picture
    texts: dict[str, bytes]  # label and captions by field


class SplitFolder:
    """The shards of one split: labels and captions in memory, pictures decoded on demand.

    Raises FileNotFoundError for missing folders and shards, ValueError for damaged or empty ones.
    """

    def __init__(self, root: Path, split: str, *, benchmark: str) -> None:
        folder = root / split
        if not root.is_dir():
            raise FileNotFoundError(f"{benchmark}: there is no folder {root}; pass eval.{benchmark}.root=DIR")
        if not folder.is_dir():
            splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
            raise FileNotFoundError(
                f"{benchmark}: {root} has no split {split!r}, it has {', '.join(splits) or 'none'}; "
                f"pass eval.{benchmark}.split=NAME"
            )
        count_file = folder / "nshards.txt"
        if not count_file.is_file():
            raise FileNotFoundError(f"{count_file} is missing: it states the number of shards, 0.tar to N-1.tar")
        text = count_file.read_text(encoding="utf-8").strip()
        if not text.isdecimal() or int(text) == 0:
            raise ValueError(f"{count_file} holds {text[:40]!r}, expected the number of shards")
        self.shards = [folder / f"{i}.tar" for i in range(int(text))]
        for shard in self.shards:
            if not shard.is_file():
                raise FileNotFoundError(f"{shard} is missing: {count_file} states {len(self.shards)} shards")
        for shard in self.shards:
            # Training goes on without what a damaged shard has lost; a score would be that of other data.
            if problems := ShardIndex.open(shard).problems:
                raise ValueError(f"{shard} is damaged: {'; '.join(problems)}; replace it")
        self.samples: list[Sample] = []
        digests: list[str] = []
        for where, fields in self._read():
            self.samples.append(sample := _sample(where, fields))
            digests.append(hashlib.sha256(fields[sample.picture]).hexdigest())
        if not digests:
            raise ValueError(f"{folder} holds no samples")
        self.pictures_sha256 = _sha256(*digests)

    def pictures(self) -> Iterator[Callable[[], Image.Image]]:
        """Functions that decode the pictures, in order; each raises ValueError naming a damaged picture."""
        for sample, (_, fields) in zip(self.samples, self._read(), strict=True):
            yield partial(_decode, sample, fields[sample.picture])

    def _read(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        reader = ShardReader(self.shards)
        for shard, count in enumerate(reader.counts):
            for sample in range(count):
                yield f"{self.shards[shard]}: {reader.key(shard, sample)}", reader.read(shard, sample)


def _languages(benchmark: str, language: str | Sequence[str]) -> list[str]:
    codes = [language] if isinstance(language, str) or not isinstance(language, Sequence) else language
    normalized = [normalize_language(code) if isinstance(code, str) else None for code in codes]
    languages = [code for code in normalized if code is not None]
    if not languages or None in normalized:
        # YAML reads an unquoted `no` (Norwegian) as false.
        raise ValueError(f"eval.{benchmark}.language is {language!r}, expected codes such as zh or [en, zh]")
    if repeated := [code for code, count in Counter(languages).items() if count > 1]:
        raise ValueError(f"eval.{benchmark}.language names {', '.join(repeated)} more than once")
    return languages


def _sample(where: str, fields: dict[str, bytes]) -> Sample:
    pictures = [field for field in IMAGE_FIELDS if field in fields]
    if len(pictures) != 1:
        members = ", ".join(sorted(fields))
        raise ValueError(f"{where} needs one picture ({', '.join(IMAGE_FIELDS)}), it has {members}")
    texts = {field: data for field, data in fields.items() if field == "cls" or is_caption_field(field)}
    return Sample(where, pictures[0], texts)


def _captions(sample: Sample, languages: list[str]) -> dict[str, list[str]]:
    """Captions of one sample by language; a plain txt is English, or the one language asked for if alone."""
    alone = len(languages) == 1 and not any(field.endswith(".txt") for field in sample.texts)
    try:
        captions = decode_captions(sample.texts, default_language=languages[0] if alone else "en")
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


def _label(sample: Sample, *, num_classes: int) -> int:
    where, _, texts = sample
    if "cls" not in texts:
        raise ValueError(f"{where} has no label cls, it has {', '.join(sorted(texts)) or 'no texts'}")
    text = texts["cls"].decode("ascii", "replace").strip()
    if not text.isdecimal() or int(text) >= num_classes:
        raise ValueError(f"{where}: cls is {text[:40]!r}, expected a class number below {num_classes}")
    return int(text)


def _decode(sample: Sample, data: bytes) -> Image.Image:
    try:
        return decode_image({sample.picture: data})
    except BadSample as error:
        raise ValueError(f"{sample.where}.{sample.picture} cannot be decoded ({error}); replace it") from error


def _language_file(root: Path, stem: str, language: str) -> Path:
    plain = root / f"{stem}.txt"
    others = {path: path.name[len(stem) + 1 : -len(".txt")] for path in sorted(root.glob(f"{stem}.*.txt"))}
    found = [path for path, code in others.items() if normalize_language(code) == language]
    if language == "en" and plain.is_file():
        found.append(plain)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or sorted(root.glob(f"{stem}*.txt")))
    if found:
        raise ValueError(f"{root} has several files for {language!r}: {names}; keep one")
    raise FileNotFoundError(f"{root} has no {stem}.{language}.txt, it has {names or f'no {stem} file'}")


def _read_lines(path: Path) -> list[str]:
    """Lines of a text file, where the line number means something: only the last may be empty."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        where = f"line {lines.index('') + 1} is empty" if lines else "the file is empty"
        raise ValueError(f"{path}: {where}, expected one entry a line")
    return lines


def _sha256(*parts: str) -> str:
    """Hash of a list of texts; their lengths are part of it, so ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()

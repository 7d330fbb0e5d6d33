"""What every benchmark does: read data, hold them against a protocol, score them in each language."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from altclip_train.data.samples import normalize_language
from altclip_train.data.urls import Shard, place
from altclip_train.evaluation.known_benchmarks import KNOWN
from altclip_train.evaluation.protocols import GENERIC, SUBSET, KnownBenchmark
from altclip_train.evaluation.readers.pictures import Pictures
from altclip_train.evaluation.results import BenchmarkResult

if TYPE_CHECKING:
    from PIL import Image

    from altclip_train.evaluation.encoder import FeatureEncoder

logger = logging.getLogger(__name__)


class Benchmark(ABC):
    """One folder of pictures, in one or several languages.

    Args:
        root: a folder; one of shards may be remote.
        language: a BCP-47 code or several; the pictures are encoded once for all of them.
        name: that of a known benchmark makes its protocols and counts hold, see ``known_benchmarks``.
        starter: directory of the starter data that ``root`` lies in; it is built when it is not there yet.
        protocol: id of a protocol; None is the default of each language.
        expect_counts: False evaluates data that are not those of the protocol, and marks the results.
    """

    kind: str

    def __init__(
        self,
        *,
        root: str | Path,
        language: str | Sequence[str],
        split: str,
        name: str,
        starter: str | Path | None,
        protocol: str | None,
        expect_counts: bool,
    ) -> None:
        self.root = place(root)
        self.languages = _languages(name, language)
        self.split = split
        self.name = name
        self.starter = starter
        self.known = _known(name, self.kind)
        self.protocols = {language: self.known.protocol(language, protocol) for language in self.languages}
        self.expect_counts = expect_counts
        self.differences: dict[str, list[str]] = {}  # by language: how the data differ from the protocol
        self._pictures: Pictures | None = None

    def prepare(self) -> Pictures:
        """Read and check everything once, but for decoding the pictures; nothing is encoded before."""
        if self._pictures is None:
            if self.starter is not None:
                from altclip_train.data.starter import ensure_starter

                ensure_starter(self.starter)
            if isinstance(self.root, Path) and not self.root.is_dir():
                raise FileNotFoundError(
                    f"{self.name}: there is no folder {self.root}; pass eval.{self.name}.root=DIR"
                    f"{self._help() if self.known.protocols[0].id != GENERIC else ''}"
                )
            pictures = self._read(self.root)
            for language in self.languages:
                self._compare(language, pictures)
            if self.known.warning is not None:
                logger.warning("%s: %s", self.name, self.known.warning)
            self._pictures = pictures
        return self._pictures

    def evaluate(self, encoder: FeatureEncoder) -> list[BenchmarkResult]:
        """One result per language. Raises ValueError naming a picture that cannot be decoded."""
        pictures = self.prepare()
        image_features = encoder.encode_images(pictures, cache_key=pictures.sha256)  # (N, D)
        return [self._evaluate(encoder, image_features, language) for language in self.languages]

    def result_protocol(self, language: str) -> str:
        """The protocol's id, marked where the data are not those of the protocol."""
        return self.protocols[language].id + SUBSET * bool(self.differences.get(language))

    def description(self, language: str, *more: str) -> str:
        """What was evaluated and how, for people."""
        differences = self.differences.get(language, [])
        parts = [self.protocols[language].description, *more]
        if differences:
            parts.append(f"not the protocol's data, not comparable: {'; '.join(differences)}")
        return "; ".join([*parts, *([self.known.warning] if self.known.warning is not None else [])])

    @abstractmethod
    def counts(self, language: str) -> dict[str, int]:
        """Images, and texts or classes."""

    def picture_names(self) -> list[str]:
        """What the data call each picture, in order."""
        pictures = self.prepare()
        return [pictures.name(index) for index in range(len(pictures))]

    def show(self, numbers: Iterable[int]) -> dict[int, Image.Image]:
        """Some of the pictures, by their number."""
        pictures = self.prepare()
        return {number: pictures.decode(number) for number in numbers}

    @abstractmethod
    def _read(self, root: Shard) -> Pictures: ...

    @abstractmethod
    def _evaluate(self, encoder: FeatureEncoder, image_features: torch.Tensor, language: str) -> BenchmarkResult: ...

    def more_differences(self, language: str) -> list[str]:  # noqa: ARG002
        """How the data differ from the protocol in anything but counts."""
        return []

    def _compare(self, language: str, pictures: Pictures) -> None:
        protocol = self.protocols[language]
        found = {**self.counts(language), "pictures": len(pictures)}
        differences = [
            f"{found[what]:,} {what} instead of {expected:,}"
            for what, expected in protocol.counts.items()
            if found[what] != expected
        ]
        differences += self.more_differences(language)
        if differences and self.expect_counts:
            raise ValueError(
                f"{self.name}: {self.root} is not the data of protocol {protocol.id} in {language!r}: it has "
                f"{'; '.join(differences)}. Complete it{self._help()}. To evaluate other data on purpose pass "
                f"eval.{self.name}.expect_counts=false: the result's protocol is then {protocol.id}{SUBSET}"
            )
        self.differences[language] = differences

    def _help(self) -> str:
        return f" (`altclip data fetch-help {self.name}` says what it needs)"


def _known(name: str, kind: str) -> KnownBenchmark:
    known = KNOWN.get(name, KNOWN[kind])
    if known.kind != kind:
        raise ValueError(f"{name} is a {known.kind} benchmark, not {kind}: take configs/eval/{name}.yaml")
    return known


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

"""What makes two scores of one benchmark comparable: a protocol, its texts, its counts, where its files come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from altclip_train.evaluation.readers.captions import AnnotationFiles
from altclip_train.evaluation.readers.prompts import Entry

GENERIC = "generic"  # protocol of data that is taken as it is
SUBSET = "_subset"  # end of the protocol id of a result whose data are not those of the protocol


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Where class names and templates of one language lie, and which of the benchmark's classes the names are of.

    ``classes`` is a list of numbers into all class labels, for names of some of them; None: one name for each.
    """

    class_names: Entry
    templates: Entry
    classes: Entry | None = None
    placeholder: str = "{c}"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to evaluate a benchmark.

    Args:
        id: short, unique in its benchmark; results of equal ids may be compared.
        counts: images, and texts or classes, of each language; pictures: of the whole folder, where languages have
            only some of them. Those not given are not checked.
        annotations: places of the captions; the first that is there is read.
        first_captions: of each picture, that count; None: all.
        prompts: by language.
    """

    id: str
    description: str
    languages: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    annotations: tuple[AnnotationFiles, ...] = ()
    first_captions: int | None = None
    prompts: Mapping[str, PromptSet] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class KnownFile:
    """A published file, by the end of its path: what it is, and its SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class KnownBenchmark:
    """A benchmark of the field.

    Args:
        protocols: the first that has a language is its default.
        source: where pictures and annotations are had.
        layouts: folders that are read, for people.
        warning: what everyone who quotes a score must know; it is in every result.
        traps: what other tools or copies of the data get wrong.
        pictures: folders below the root that may hold the pictures, or the folders of the classes.
        class_folders: names of the class folders in the order of their labels; a whole number n for 0 to n - 1.
        files: published files whose bytes are known.
    """

    name: str
    title: str
    kind: Literal["retrieval", "zero_shot"]
    protocols: tuple[Protocol, ...]
    source: str
    licence: str
    layouts: tuple[str, ...]
    warning: str | None = None
    traps: tuple[str, ...] = ()
    pictures: tuple[str, ...] = (".",)
    class_folders: Entry | int | None = None
    subset_of: Entry | None = None  # all classes, of which the class names are, where class_folders are some of them
    files: tuple[KnownFile, ...] = ()

    @property
    def languages(self) -> list[str]:
        return list(dict.fromkeys(language for protocol in self.protocols for language in protocol.languages))

    def protocol(self, language: str, wanted: str | None) -> Protocol:
        """The protocol ``wanted``, or the default of the language. Raises ValueError listing what there is."""
        if self.protocols[0].id == GENERIC:
            if wanted not in (None, GENERIC):
                raise ValueError(f"eval.{self.name}.protocol is {wanted!r}, but it is no benchmark that has protocols")
            return self.protocols[0]
        ids = {protocol.id: protocol for protocol in self.protocols}
        if wanted is not None and wanted not in ids:
            raise ValueError(f"eval.{self.name}.protocol is {wanted!r}, expected one of {', '.join(ids)}")
        for protocol in self.protocols if wanted is None else [ids[wanted]]:
            if language in protocol.languages:
                return protocol
        having = ids.values() if wanted is None else [ids[wanted]]
        listed = "; ".join(f"{protocol.id}: {', '.join(protocol.languages)}" for protocol in having)
        raise ValueError(f"eval.{self.name}.language is {language!r}, but its protocols have {listed}")

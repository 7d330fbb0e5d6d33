"""Where samples come from: shards that belong together, with their weight and languages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from altclip_train.data.samples import normalize_language
from altclip_train.data.urls import without_secrets


@dataclass
class Source:
    """Shards that belong together.

    ``weight`` is their share of what is drawn, in any unit; by default every sample is drawn equally often.
    ``languages`` limits which captions are used; if it names one, plain ``txt`` captions are in it. ``manifest`` is
    what ``altclip data index --manifest`` wrote of remote shards, one file or several.
    """

    urls: str | Path | Sequence[str | Path]
    weight: float | None = None
    languages: Sequence[str] | None = None
    name: str | None = None
    manifest: str | Path | Sequence[str | Path] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.languages, str):
            raise ValueError(f"languages={self.languages!r} of source {self.label!r}: give a list of language codes")
        if self.languages is not None:
            self.languages = [language_code(code) for code in self.languages]

    @classmethod
    def from_config(cls, config: Source | str | Path | Mapping[str, Any]) -> Source:
        """A source from a mapping of its fields, or from one url. Raises ValueError for an unknown field."""
        if isinstance(config, Source):
            return config
        if isinstance(config, str | Path):
            return cls(urls=config)
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"a source has {', '.join(known)}"
                raise ValueError(f"unknown key {key!r} in a data source: {hint}")
        if "urls" not in config:
            raise ValueError(f"a data source needs 'urls', got only {', '.join(config) or 'nothing'}")
        return cls(**config)

    @property
    def label(self) -> str:
        """What messages call this source."""
        urls = [self.urls] if isinstance(self.urls, str | Path) else self.urls
        return self.name or without_secrets(", ".join(map(str, urls)))

    @property
    def default_language(self) -> str | None:
        return self.languages[0] if self.languages is not None and len(self.languages) == 1 else None


def weights_of(sources: Sequence[Source], *, default: Sequence[float]) -> list[float]:
    """The weight of each source, or ``default`` where none has one. Raises ValueError for others than positive ones."""
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        missing = next(source for source in sources if source.weight is None)
        raise ValueError(f"source {missing.label!r} has no weight but others have: give one to all or to none")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights {weights} of the data sources: each must be a finite number above 0")
    return weights or list(default)


def language_code(code: str) -> str:
    """BCP-47 spelling of ``code``. Raises ValueError if it is no language code."""
    # YAML reads an unquoted no, which is Norwegian, as false.
    language = normalize_language(code) if isinstance(code, str) else None
    if language is None:
        raise ValueError(f"{code!r} is no language code: expected one such as 'en', 'zh' or 'pt-BR', in quotes")
    return language

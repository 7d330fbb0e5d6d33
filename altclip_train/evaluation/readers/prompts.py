"""Class names and templates out of other projects' files: read as data, never imported or run.

CLIP_benchmark's lists lie in its wheel, which pip downloads without its dependencies; a wheel is read as it is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from altclip_train.data.cache import default_directory
from altclip_train.evaluation.readers.clip_benchmark import lines

WHEEL = "clip-benchmark==1.6.2"
WHEELS = "clip_benchmark-*.whl"


class Prompts(NamedTuple):
    class_names: list[str]
    templates: list[str]  # with the placeholder {c}


@dataclass(frozen=True)
class Entry:
    """One list in a file: of a JSON object or a Python variable by its keys, of a text file its lines."""

    file: str
    keys: tuple[str | int, ...] = ()


class PromptFiles:
    """Files of prompts wherever they lie: files, folders and wheels in ``places``, then the cache folder.

    ``digests`` are the SHA-256 of known files. Those that differ from them are in ``changed`` once they were read.
    """

    def __init__(self, places: Sequence[str | Path], digests: Mapping[str, str]) -> None:
        self.places = [Path(place).expanduser() for place in places]
        self.digests = digests
        self.changed: list[str] = []
        self._contents: dict[str, Any] = {}
        for place in self.places:
            if not place.exists():
                raise FileNotFoundError(f"prompts: there is no {place}")

    def read(self, entry: Entry) -> Any:
        """The list that an entry names. Raises FileNotFoundError saying how to get the file, and ValueError."""
        if entry.file not in self._contents:
            where, data = self._find(entry.file)
            if hashlib.sha256(data).hexdigest() != self.digests.get(entry.file):
                self.changed.append(where)
            self._contents[entry.file] = _parse(entry.file, data, where)
        value = self._contents[entry.file]
        try:
            for key in entry.keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{entry.file} has no entry {' / '.join(map(str, entry.keys))}") from None
        return value.get() if isinstance(value, _Literal) else value

    def _find(self, name: str) -> tuple[str, bytes]:
        for place in [*self.places, cache_folder()]:
            for where, read in _candidates(place, name):
                try:
                    return where, read()
                except KeyError:  # a wheel without that member
                    continue
        places = ", ".join(map(str, [*self.places, cache_folder()]))
        raise FileNotFoundError(f"{name} is in none of {places}: {how_to_get(name)}")


def cache_folder() -> Path:
    """Where prompts are looked for by default."""
    return default_directory().parent / "prompts"


def how_to_get(name: str) -> str:
    """One line for a person: a command, or where the file is published."""
    if name.startswith("clip_benchmark/"):
        return f"pip download --no-deps --dest {cache_folder()} {WHEEL}"
    sources = {
        "label_cn.txt": "datasets/ImageNet-1K/label_cn.txt of OFA-Sys/Chinese-CLIP",
        "constants.py": "mCLIPEval/dataset/constants.py of flageval-baai/FlagEval",
    }
    return f"get {sources[name]} and put it there"


def _candidates(place: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Where ``name`` may lie in a place, and a function that reads it there."""
    if place.is_dir():
        paths = [place / name, *([place / Path(name).name] if "/" not in name else [])]
        yield from ((str(path), path.read_bytes) for path in paths if path.is_file())
        wheels = sorted(place.glob(WHEELS))
    else:
        if place.name == Path(name).name:
            yield str(place), place.read_bytes
        wheels = [place] if place.suffix == ".whl" else []
    for wheel in wheels:
        yield f"{wheel}/{name}", lambda wheel=wheel: _member(wheel, name)


def _member(wheel: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel} is no whole wheel: {error}") from None


class _Literal:
    """A Python expression that is evaluated, if it is made of literals alone, when it is wanted."""

    def __init__(self, node: ast.expr, where: str) -> None:
        self.node, self.where = node, where

    def __getitem__(self, key: str | int) -> _Literal:
        return _Literal(self._values[str(key)], self.where)

    @cached_property
    def _values(self) -> dict[str, ast.expr]:
        match self.node:
            case ast.Call(func=ast.Name("dict"), args=[], keywords=keywords):
                return {keyword.arg: keyword.value for keyword in keywords if keyword.arg is not None}
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
        raise KeyError

    def get(self) -> Any:
        try:
            return ast.literal_eval(self.node)
        except ValueError as error:
            raise ValueError(f"{self.where}:{self.node.lineno}: expected plain literals: {error}") from None


def _parse(name: str, data: bytes, where: str) -> Any:
    try:
        text = data.decode("utf-8-sig")
        if name.endswith(".json"):
            return json.loads(text)
        if name.endswith(".txt"):
            return lines(text, where)
        return {
            node.targets[0].id: _Literal(node.value, where)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
    except (ValueError, SyntaxError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from None

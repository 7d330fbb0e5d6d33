"""Checks of a composed configuration before anything is loaded.

Constructor signatures are the schema: every node with a ``_target_`` must fit the signature it names.
"""

from __future__ import annotations

import collections.abc
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What a _target_ may name, by module or by whole name: what a training is built of, and nothing that runs commands,
# reads pickles or fetches code.
TARGETS = (
    "altclip_train",
    "torch.optim",
    "lightning.Trainer",
    *(f"lightning.pytorch.{part}" for part in ("callbacks", "loggers", "plugins", "profilers", "strategies")),
    "wandb.Settings",
)
_RESERVED = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}


def check_configuration(node: Any, path: str = "", *, own_modules: Sequence[str] = ()) -> None:
    """Walk a plain configuration; raise ValueError naming the first key or value that no constructor takes.

    A ``_target_`` may name what ``TARGETS`` lists, and what ``own_modules`` define.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, path, own_modules)
        for key, value in node.items():
            check_configuration(value, f"{path}.{key}" if path else str(key), own_modules=own_modules)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_configuration(value, f"{path}[{index}]", own_modules=own_modules)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as "; did you mean 'devices'?", or nothing when no known word is near."""
    spellings = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), spellings, n=1)
    return f"; did you mean {spellings[matches[0]]!r}?" if matches else ""


def unknown_key_hint(key: str, configuration: Mapping[str, Any]) -> str:
    """Where the dotted ``key`` leaves the configuration, and the nearest key that exists there."""
    node: Any = configuration
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            where = ".".join(walked) or "the configuration"
            known = list(node) if isinstance(node, Mapping) else []
            hint = nearest(part, map(str, known)) or "."
            return f"{where} has no key {part!r}{hint} Known keys: {', '.join(map(str, known)) or 'none'}"
        node = node[part]
        walked.append(part)
    return f"{key} exists"


def _check_call(node: Mapping[str, Any], path: str, own_modules: Sequence[str]) -> None:
    target = str(node["_target_"])
    if not _below(target, (*TARGETS, *own_modules)):
        raise ValueError(
            f"{path}._target_={target} is none of {', '.join(TARGETS)}; list modules of your own in own_modules"
        )
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}._target_={target} cannot be imported: {error}") from error
    defined_in = str(getattr(function, "__module__", None))
    if not callable(function) or not _below(defined_in, ("altclip_train", "torch", "lightning", "wandb", *own_modules)):
        raise ValueError(f"{path}._target_={target} is not defined there, but comes from {defined_in}")
    call = function.__init__ if inspect.isclass(function) else function
    parameters = inspect.signature(call).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = typing.get_type_hints(call)
    except (NameError, TypeError):  # a hint that only exists for type checkers
        hints = {}
    for key, value in node.items():
        if key in _RESERVED:
            continue
        if key not in parameters:
            if takes_any:
                continue
            raise ValueError(f"{path}.{key} is not taken by {target}{nearest(str(key), parameters)}")
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(
                f"{path}.{key}={value!r}: {target} expects {_spell(hints[key])}, not {type(value).__name__}"
            )


def _below(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be what the hint asks for; anything but plain types passes."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    if origin in (collections.abc.Sequence, list, tuple):
        return not isinstance(value, str | int | float)
    if origin in (collections.abc.Mapping, dict):
        return not isinstance(value, str | int | float | list)
    import torch  # by now loaded, but not by --cfg and by mistyped overrides

    # A tensor, a path, a module: never a number or a word, but paths are written as words.
    return not (inspect.isclass(hint) and isinstance(value, str) and issubclass(hint, torch.Tensor))


def _spell(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)

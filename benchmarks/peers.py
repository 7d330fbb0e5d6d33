"""The peers' own code, as their users run it. Imported only in the peers' environment."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any


class _Placeholder(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _NoTorchvision:
    """Stands in for torchvision, which open_clip imports for its image transforms; nothing measured here uses it."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        class Module(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return _Placeholder(name, (), {})

        module = Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def open_clip() -> Any:
    """The package."""
    if not any(isinstance(finder, _NoTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _NoTorchvision())  # type: ignore[arg-type]
    import open_clip

    return open_clip


def open_clip_loss() -> Any:
    """ClipLoss for one process."""
    open_clip()
    from open_clip.loss import ClipLoss

    return ClipLoss()

"""What processors and tokenizers return."""

from __future__ import annotations

from typing import Any

import torch


class ProcessorOutput(dict[str, Any]):
    """Model inputs by name, also as attributes: ``output.input_ids`` is ``output["input_ids"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here, only {sorted(self)}") from None

    def to(
        self,
        device: str | int | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> ProcessorOutput:
        """Move every tensor to ``device`` and turn the floating ones into ``dtype``; ids stay integers.

        Changes and returns this object, as code written for `transformers` expects. ``to(torch.float16)`` works.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                kind = dtype if value.is_floating_point() else None
                self[name] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self

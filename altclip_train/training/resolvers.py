"""Names that the YAML files use in ``${...}``. Imports little, so that ``train.py --cfg job`` answers at once."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from altclip_train.training import runs


def register_resolvers() -> None:
    """Make them known to OmegaConf."""
    OmegaConf.register_new_resolver("run_directory", runs.run_directory, replace=True)
    OmegaConf.register_new_resolver("start_from", runs.start_from, replace=True)
    OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)
    OmegaConf.register_new_resolver("required", required, replace=True)
    OmegaConf.register_new_resolver("with_or_without", with_or_without, replace=True)


def required(key: str) -> Any:
    """The value of a key that an experiment leaves to the command line; ``???`` would keep the default's value."""
    raise ValueError(f"{key} has no value: pass {key}=...")


def with_or_without(value: Any, when_given: Any, when_null: Any) -> Any:
    """One of two settings, by whether another has a value."""
    return when_null if value is None else when_given


def fastest_precision(accelerator: str) -> str:
    """bf16 autocast with fp32 master weights where the device computes bf16 natively, else fp32."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"

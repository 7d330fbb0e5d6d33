"""Both Hydra commands: mistakes in overrides are explained, everything else is Hydra's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from altclip_train.configuration import nearest, unknown_key_hint
from altclip_train.errors import short_errors


def run_main(main: Callable[[], None], config_directory: Path, config_name: str) -> None:
    """Run a Hydra entry point; explain a mistyped key or choice by its nearest neighbour."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        with short_errors():  # of what Hydra resolves before it calls main
            main()
    except SystemExit as exit_:
        if exit_.code == 1:  # Hydra's own; an error of ours has its message as code
            for hint in hints_at_overrides(sys.argv[1:], config_directory, config_name):
                print(f"\n{hint}", file=sys.stderr)
        raise


def hints_at_overrides(arguments: Sequence[str], config_directory: Path, config_name: str) -> list[str]:
    """One per override that names what does not exist. Hydra advises to add a key, and lists no benchmarks."""
    overrides = [argument for argument in arguments if "=" in argument and argument[0] not in "-+~"]
    groups = {path.name: sorted(f.stem for f in path.glob("*.yaml")) for path in config_directory.iterdir()}
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    if hints := [hint for override in chosen for hint in _unknown_choices(override, groups)]:
        return hints
    config = _composed(config_directory, config_name, chosen)
    keys = {override: override.partition("=")[0] for override in overrides if override not in chosen}
    hints = {override: unknown_key_hint(key, config) for override, key in keys.items() if not key.startswith("hydra")}
    return [f"{override}: {hint}" for override, hint in hints.items() if config and not hint.endswith(" exists")]


def _unknown_choices(override: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    group, _, value = override.partition("=")
    known = groups[group]
    names = [name.strip() for name in value.strip("[]").split(",")]
    return [
        f"{override}: no {group} is named {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}"
        for name in names
        if name not in (*known, "", "null")
    ]


def _composed(config_directory: Path, config_name: str, overrides: list[str]) -> dict[str, Any]:
    """The configuration with these choices; empty when they do not compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_directory.resolve()), version_base="1.3"):
            config = OmegaConf.to_container(compose(config_name, overrides), resolve=False)
    except HydraException:
        return {}
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}

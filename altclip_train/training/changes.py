"""What of a configuration must be as it was when a run is resumed, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What a step computes. Everything else, such as where and how long, may change.
FIXED = ("seed", "float32_matmul_precision", "stage", "data", "trainer.precision")
FIXED += ("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm")
# Of these, what has no part in the result ...
FREE = {
    "stage": {"micro_batch", "gradient_checkpointing", "compile"},
    "data": {
        "num_workers",
        "cache_dir",
        "cache_bytes",
        "embeddings",
        "embeddings_dir",
        "max_bad_fraction",
        "val_texts",
    },
}
# ... and paths: what they lead to is compared by its contents.
PATHS = {"urls", "name", "clip", "student", "model", "path_or_id", "starter", "tokenizer_directory"}
_ABSENT = "nothing"


def check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], *, run: str) -> None:
    """Raise ValueError with every difference that would make a resumed run another one."""
    old, new = _fixed(before), _fixed(now)
    changed = [
        f"  {key}: {old.get(key, _ABSENT)!r} -> {new.get(key, _ABSENT)!r}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]
    if changed:
        head = f"{run} was started with another configuration (then -> now):"
        tail = "Resume with the old values, start a new run, or pass resume_force=true to go on all the same"
        raise ValueError("\n".join([head, *changed, tail]))


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(_leaves(config))
    return {key: value for key, value in flat.items() if _is_fixed(key)}


def _is_fixed(key: str) -> bool:
    if not any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in FIXED):
        return False
    group, _, rest = key.partition(".")
    inside = rest.partition(".")[0].partition("[")[0]
    return inside not in FREE.get(group, ()) and not PATHS & {part.partition("[")[0] for part in rest.split(".")}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of everything that is not a mapping or a list of mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value

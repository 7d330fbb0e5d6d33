"""The model card of a directory of weights: a README.md of recorded facts, which says what is not recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from altclip_train.files import written_whole
from altclip_train.markdown import code, table, text
from altclip_train.models import AltCLIPModel, CLIPModel

UNKNOWN = "not recorded"
STAGES = {
    "teacher": "Teacher learning: the text tower learns the vectors of the CLIP from parallel text, without images",
    "contrastive": "Contrastive learning on image-text pairs",
}
_CLASSES = {"altclip": ("AltCLIPModel", "AltCLIPProcessor"), "clip": ("CLIPModel", "CLIPProcessor")}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One benchmark in one language; metrics are shares in [0, 1]."""

    benchmark: str
    language: str
    metrics: Mapping[str, float]
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run directory records of one stage; None where it records nothing."""

    stage: str
    config: Mapping[str, Any]  # resolved
    sha256: Mapping[str, str | None] = field(default_factory=dict)  # of clip, student, start; None for a hub id
    software: Mapping[str, str | None] = field(default_factory=dict)
    samples: Sequence[int] | None = None  # of each data source
    languages: Sequence[str] | None = None
    steps: int | None = None
    scores: Sequence[Scores] = ()
    earlier: RunFacts | None = None  # the run whose model this one started from

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.stage)

    def stages(self) -> list[RunFacts]:
        """This run and those before it, oldest first."""
        return [*(self.earlier.stages() if self.earlier else []), self]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a layout adds to the card: how its files are loaded, and the fields that a model hub reads."""

    text: str
    tags: Sequence[str] = ()
    library: str | None = None


def write_card(directory: Path, model: AltCLIPModel | CLIPModel, run: RunFacts | None, usage: Usage) -> None:
    """Write `README.md`; a reader sees either the old file or the whole new one."""
    with written_whole(directory / "README.md") as partial:
        partial.write_text(model_card(model, run, usage), encoding="utf-8")


def model_card(model: AltCLIPModel | CLIPModel, run: RunFacts | None, usage: Usage) -> str:
    """The whole card. ``run`` is None for weights that were not trained in a run directory."""
    title = f"{text(run.name)}: {_kind(model)}" if run else _kind(model)
    parts = [
        _front_matter(model, run, usage),
        f"# {title}\n",
        _what_it_is(model, run),
        "## How to load it\n",
        usage.text.strip() + "\n",
        "## Training\n",
        "\n".join(map(_stage, run.stages())) if run else "These weights came without a record of their training.\n",
        "## Evaluation\n",
        _evaluation(run),
        "## Limitations\n",
        _limitations(model, run),
    ]
    return "\n".join(parts)


def _front_matter(model: AltCLIPModel | CLIPModel, run: RunFacts | None, usage: Usage) -> str:
    fields = {
        "language": _languages(run),
        "library_name": usage.library,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [model.config.model_type, *usage.tags],
        "base_model": [name for name, digest in _bases(run).items() if digest is None],
    }
    known = {key: value for key, value in fields.items() if value}
    # A YAML writer, because Norwegian is `no` and a name may hold anything.
    return (
        f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}"
        "# license: add one; it follows from the base models and the training data\n---\n"
    )


def _kind(model: AltCLIPModel | CLIPModel) -> str:
    return "AltCLIP" if isinstance(model, AltCLIPModel) else "CLIP"


def _what_it_is(model: AltCLIPModel | CLIPModel, run: RunFacts | None) -> str:
    words, vision = model.config.text_config, model.config.vision_config
    languages = _languages(run)
    rows = {
        "what it gives": "vectors of texts and of pictures in one space, compared by their cosine",
        "languages trained": ", ".join(map(text, languages)) if languages else UNKNOWN,
        "parameters": f"{model.num_parameters():,}",
        "text tower": f"{words.num_hidden_layers} layers, width {words.hidden_size}, {words.vocab_size:,} tokens, "
        f"at most {words.max_tokens} in a text",
        "image tower": f"{vision.num_hidden_layers} layers, width {vision.hidden_size}, pictures of "
        f"{vision.image_size} pixels in patches of {vision.patch_size}",
        "joint space": f"{model.config.projection_dim} dimensions",
        "made from": _made_from(run),
        "made with": "altclip_train, after AltCLIP ([arXiv 2211.06679](https://arxiv.org/abs/2211.06679))",
    }
    return table(["", ""], rows.items())


def _made_from(run: RunFacts | None) -> str:
    if run is None:
        return UNKNOWN
    bases = [code(base) for base in _bases(run)]
    fresh = run.stages()[0].stage == "teacher" and _get(run.stages()[0].config, "student") is None
    return ", ".join([*bases, *(["a text tower of random weights"] if fresh else [])]) or "random weights"


def recipe(run: RunFacts) -> dict[str, str]:
    """What a run trained with, by the name that people give it; what does not apply is left out."""
    config = run.config
    optimizer = _get(config, "stage.optimizer") or {}
    software = ", ".join(f"{name} {version or UNKNOWN}" for name, version in run.software.items())
    rows = {
        "steps": UNKNOWN if run.steps is None else f"{run.steps:,}",
        "global batch": _get(config, "data.global_batch_size"),
        "optimizer": _call(optimizer),
        "schedule": _call(_get(config, "stage.schedule") or {}),
        "weight decay": _get(config, "stage.weight_decay"),
        "gradient clipping": _get(config, "trainer.gradient_clip_val"),
        "precision": _get(config, "trainer.precision"),
        "longest text": _with_unit(_get(config, "data.max_length"), "tokens"),
        "loss": _get(config, "stage.loss"),
        "locked parts": ", ".join(_get(config, "stage.locked") or []) or None,
        "languages": ", ".join(run.languages) if run.languages else UNKNOWN,
        "seed": _get(config, "seed"),
        "software": software or UNKNOWN,
    }
    return {key: str(value) for key, value in rows.items() if value is not None}


def _stage(run: RunFacts) -> str:
    rows = table(["", ""], ((key, text(value)) for key, value in recipe(run).items()))
    heading = STAGES.get(run.stage, run.stage)
    return f"### {text(heading)}\n\n{rows}\nData:\n\n{_data(run)}"


class SourceFacts(NamedTuple):
    """One source of data as the configuration names it, its urls without what opens them."""

    urls: list[str]
    samples: int | None
    weight: float | None  # None: by its samples
    languages: list[str]  # empty: those of the run


def sources(run: RunFacts) -> list[SourceFacts]:
    """The sources that a run trained on."""
    configured = _get(run.config, "data.parallel_texts") or _get(run.config, "data.image_texts") or []
    counts: Sequence[int | None] = run.samples or [None] * len(configured)
    found = []
    for source, count in zip(configured, counts, strict=False):
        given = source if isinstance(source, Mapping) else {"urls": source}
        urls = [given["urls"]] if isinstance(given["urls"], str) else given["urls"]
        found.append(SourceFacts(list(map(_address, urls)), count, given.get("weight"), given.get("languages") or []))
    return found


def _data(run: RunFacts) -> str:
    rows = [
        (
            ", ".join(map(code, source.urls)),
            UNKNOWN if source.samples is None else f"{source.samples:,}",
            "by its samples" if source.weight is None else text(source.weight),
            ", ".join(map(text, source.languages)) or "as above",
        )
        for source in sources(run)
    ]
    return table(["source", "samples", "weight", "languages"], rows) if rows else f"{UNKNOWN}\n"


def _address(url: Any) -> str:
    """A url without what opens it: user, password, and the signature that a query may hold."""
    scheme, remote, rest = str(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if remote else scheme


def _evaluation(run: RunFacts | None) -> str:
    if run is None or not run.scores:
        return "No benchmark results are recorded for these weights.\n"
    tables = []
    for metrics, kind in scores_by_kind(run.scores).items():
        rows = [
            (
                text(scores.benchmark),
                text(scores.language),
                text(scores.split or UNKNOWN),
                *(f"{100 * scores.metrics[metric]:.1f}" for metric in metrics),
            )
            for scores in kind
        ]
        tables.append(table(["benchmark", "language", "split", *(text(m.replace("_", " ")) for m in metrics)], rows))
    return "In percent, as the run directory records them.\n\n" + "\n".join(tables)


def scores_by_kind(scores: Iterable[Scores]) -> dict[tuple[str, ...], list[Scores]]:
    """Scores with the same metrics stand in one table: metrics in the order of reading -> scores."""
    kinds: dict[tuple[str, ...], list[Scores]] = {}
    for one in scores:
        kinds.setdefault(tuple(sorted(one.metrics, key=reading_order)), []).append(one)
    return kinds


def _limitations(model: AltCLIPModel | CLIPModel, run: RunFacts | None) -> str:
    languages = _languages(run)
    lines = [
        "The licence of these weights is not known here: it follows from the base models and the training data.",
        "Languages other than those above were not trained; what the model does with them was not measured."
        if languages
        else "Which languages the training data hold is not recorded.",
        "Bias, safety and robustness were not measured. Nothing is known about uses beyond the benchmarks above.",
        f"Texts beyond {model.config.text_config.max_tokens} tokens cannot be read.",
    ]
    if run is not None and [one.stage for one in run.stages()] == ["teacher"]:
        lines.append("The text tower was trained on texts alone: it never saw a picture.")
    if run is not None and _get(run.config, "data.starter") is not None:
        lines.append("The last stage trained on the starter data alone: drawings of emoji, and short texts on them.")
    return "".join(f"- {line}\n" for line in lines)


def _languages(run: RunFacts | None) -> list[str]:
    """Languages of all stages in order of appearance; empty when a stage does not know its own."""
    stages = run.stages() if run else []
    if any(one.languages is None for one in stages):
        return []
    return list(dict.fromkeys(language for one in stages for language in one.languages or []))


def _bases(run: RunFacts | None) -> dict[str, str | None]:
    """What the oldest stage started from, as its command named it -> its sha256, None for a hub id."""
    if run is None:
        return {}
    first = run.stages()[0]
    keys = {"clip": "clip", "student": "student"} if first.stage == "teacher" else {"start": "data.model"}
    named = {source: _get(first.config, key) for source, key in keys.items()}
    return {str(name): first.sha256.get(source, "") for source, name in named.items() if name is not None}


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _call(node: Mapping[str, Any]) -> str | None:
    """`torch.optim.AdamW`, lr 0.001, ... of a configuration node."""
    if "_target_" not in node:
        return None
    shown = {key: " and ".join(map(str, value)) if isinstance(value, list) else value for key, value in node.items()}
    fields = [f"{key} {value}" for key, value in shown.items() if not key.startswith("_")]
    return ", ".join([str(node["_target_"]).rpartition(".")[2], *fields])


def reading_order(name: str) -> list[str | int]:
    """Sorts R@5 before R@10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _with_unit(value: Any, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def directory_usage(model: AltCLIPModel | CLIPModel) -> Usage:
    """How a model directory in the published layout is loaded."""
    model_class, processor_class = _CLASSES[model.config.model_type]
    ours = (
        f"from altclip_train import {model_class}, {processor_class}"
        if isinstance(model, AltCLIPModel)
        else f"from altclip_train import AltCLIPProcessor as {processor_class}\n"
        f"from altclip_train.models import {model_class}"
    )
    return Usage(
        library="transformers",
        tags=["multilingual"] if isinstance(model, AltCLIPModel) else [],
        text=f"""\
```python
{ours}
from PIL import Image

model = {model_class}.from_pretrained("DIR")
processor = {processor_class}.from_pretrained("DIR")
image = Image.open("picture.jpg")
inputs = processor(text=["a photo of a cat", "a photo of a dog"], images=image, return_tensors="pt", padding=True)
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
```

The same lines run with `transformers`, by `from transformers import {model_class}, {processor_class}`.""",
    )

"""What the CHECKPOINT of a command names, as a whole model: a directory or hub id, a run, or a state of training."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from altclip_train.data.datamodule import ImageTextData, TextPairData
from altclip_train.hub import is_hub_id, local_directory
from altclip_train.model_card import RunFacts, Usage, write_card
from altclip_train.models import AltCLIPModel, CLIPModel, build_clip, load_model
from altclip_train.processing import AltCLIPProcessor
from altclip_train.stages import ContrastiveLearning, TeacherLearning
from altclip_train.training import runs
from altclip_train.training.facts import read_config, read_run
from altclip_train.training.sharded import is_sharded, read_rest, read_weights

# A configuration is a file that anyone may have written: it builds these and nothing else.
PARTS: dict[str, Callable[..., Any]] = {
    "altclip_train.stages.TeacherLearning": TeacherLearning,
    "altclip_train.stages.ContrastiveLearning": ContrastiveLearning,
    "altclip_train.data.datamodule.TextPairData": TextPairData,
    "altclip_train.data.datamodule.ImageTextData": ImageTextData,
    "altclip_train.models.load_model": load_model,
    "altclip_train.models.build_clip": build_clip,
}
# What each stage takes from the directories that it was started from, beside its checkpoint.
NEEDED = {"teacher": ("clip", "student"), "contrastive": ("start",)}


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A whole model in eval mode, its processor, and what is known of its training."""

    model: AltCLIPModel | CLIPModel
    processor: AltCLIPProcessor
    run: RunFacts | None
    card: str | None = None  # that came with weights whose training is not recorded

    def write_card(self, directory: Path, usage: Usage) -> None:
        """Write the card of this model as other files; a card that came with it says more than is known here."""
        if self.card is None:
            write_card(directory, self.model, self.run, usage)
        else:
            text = f"{self.card.rstrip()}\n\n## How to load these files\n\n{usage.text.strip()}\n"
            (directory / "README.md").write_text(text, encoding="utf-8")


def open_trained_model(path_or_id: str | Path) -> TrainedModel:
    """The model that this names. Raises ModuleNotFoundError, FileNotFoundError or ValueError that say what to pass."""
    if is_hub_id(path_or_id):
        return _from_directory(local_directory(path_or_id, weights=True))
    path = Path(path_or_id).expanduser()
    if path.is_file() or is_sharded(path):
        return _from_training_state(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; pass a model directory, a run directory or RUN/{runs.CHECKPOINTS}/NAME.ckpt, "
            "or a hub id ORG/NAME"
        )
    if (path / runs.RUN_FILE).is_file():
        return _from_directory(_finished_model(path))
    return _from_directory(path)


def _finished_model(run: Path) -> Path:
    if runs.is_finished(run):
        return run / runs.MODEL
    newest = runs.newest_checkpoint(run)
    raise FileNotFoundError(
        f"{run} is an unfinished run without {runs.MODEL}/; "
        + (f"pass one of its checkpoints, such as {newest}" if newest else "it has no checkpoint yet either")
    )


def _from_directory(directory: Path) -> TrainedModel:
    run = directory.resolve().parent
    known = directory.resolve().name == runs.MODEL and (run / runs.RUN_FILE).is_file()
    card = directory / "README.md"
    return TrainedModel(
        model=load_model(directory),
        processor=AltCLIPProcessor.from_pretrained(directory),
        run=read_run(run) if known else None,
        card=card.read_text(encoding="utf-8") if card.is_file() and not known else None,
    )


def _from_training_state(file: Path) -> TrainedModel:
    """Rebuild the stage of a Lightning checkpoint from its run directory and fill it, without a trainer."""
    run = file.resolve().parent.parent
    config = read_config(run)
    described = runs.read_run_file(run)
    if described["stage"] not in NEEDED:
        raise ValueError(f"{run / runs.RUN_FILE}: stage is {described['stage']!r}, expected one of {', '.join(NEEDED)}")
    runs.check_sources(run, NEEDED[described["stage"]])
    state = _read_state(file)
    stage = _build(config["stage"], run)
    data = _build({**config["data"], "num_workers": 0}, run)
    stage.on_load_checkpoint(state)
    stage.load_state_dict(state["state_dict"])
    data.load_processing()
    return TrainedModel(
        model=stage.trained_model.eval(),
        processor=stage.processor_of(data),
        run=read_run(run, step=state["global_step"]),
    )


def _read_state(file: Path) -> dict[str, Any]:
    if file.is_dir():
        return {**read_rest(file), "state_dict": read_weights(file)}
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} is not a checkpoint of altclip_train, or is damaged: {reason}") from error
    if not isinstance(state, dict) or not {"state_dict", "global_step"} <= state.keys():
        raise ValueError(f"{file} is not a checkpoint of altclip_train: it lacks state_dict or global_step")
    return state


def _build(node: Mapping[str, Any], run: Path) -> Any:
    """What a node of a run's configuration describes; optimizer and schedule are left out."""
    target = node.get("_target_")
    if target not in PARTS:
        raise ValueError(f"{run / 'config.yaml'}: _target_ is {target!r}, expected one of {', '.join(PARTS)}")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    for key in ("optimizer", "schedule"):
        if key in arguments:
            arguments[key] = None
    built = {k: _build(v, run) if isinstance(v, Mapping) and "_target_" in v else v for k, v in arguments.items()}
    return PARTS[target](**built)

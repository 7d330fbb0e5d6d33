"""Models out of directories and parts: whatever a directory holds, students, and a CLIP that becomes an AltCLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from altclip_train.models.altclip import AltCLIPModel, CLIPModel
from altclip_train.models.checkpoint import Checkpoint, open_checkpoint
from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from altclip_train.models.weights import fill
from altclip_train.models.xlm_roberta import AltCLIPTextModel


def load_model(
    path_or_id: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> AltCLIPModel | CLIPModel:
    """The AltCLIP or CLIP of a directory or hub id, as its config says. Raises ValueError for any other kind."""
    checkpoint = open_checkpoint(path_or_id)
    for kind in (AltCLIPModel, CLIPModel):
        if checkpoint.model_type == kind.config_class.model_type:
            return kind.from_checkpoint(checkpoint, dtype=dtype, device=device)
    raise ValueError(f"{path_or_id} holds a model of type {checkpoint.model_type!r}, expected 'altclip' or 'clip'")


def load_clip_text(clip: str | Path) -> CLIPTextModel:
    """The text tower of a CLIP directory, in eval mode; nothing else of it is read."""
    return CLIPTextModel.from_checkpoint(_clip_checkpoint(clip))


def build_text_student(*, student: str | Path | None, project_dim: int, **config_fields: Any) -> AltCLIPTextModel:
    """The student of stage one, in training mode.

    `student` is an XLM-R directory, an AltCLIP one (its text tower is taken), or None: random weights in the
    shape of `config_fields`. With a directory, its config.json gives the shape, and only the dropouts of
    `config_fields` count. Dropout is 0 unless given, so that the student can match a teacher without any.
    """
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    given = AltCLIPTextConfig.from_fields({**dropouts, **config_fields, "project_dim": project_dim})
    if student is None:
        return AltCLIPTextModel(given)
    dropouts = {name: getattr(given, name) for name in dropouts}
    checkpoint = open_checkpoint(student)
    found = checkpoint.model_type
    if found == AltCLIPConfig.model_type:
        config = checkpoint.config(AltCLIPTextConfig)
        if config.project_dim != project_dim:
            raise ValueError(
                f"the text tower in {student} projects to {config.project_dim}, the teacher's width is "
                f"{project_dim}: take a student made for this teacher, or a plain XLM-R"
            )
    elif found == "xlm-roberta":
        config = AltCLIPTextConfig.from_dict({**checkpoint.content, "project_dim": project_dim})
    else:
        raise ValueError(f"{student} holds a model of type {found!r}, expected 'xlm-roberta' or 'altclip'")
    with torch.device("meta"):
        model = AltCLIPTextModel(dataclasses.replace(config, **dropouts))
    head = ("pre_LN.", "transformation.") if found == "xlm-roberta" else ()
    fill(model, checkpoint, towers=AltCLIPTextModel.towers, part=AltCLIPTextModel.part, without=head)
    if head:
        model.reset_head()
    return model


def assemble_altclip(clip: str | Path, student: AltCLIPTextModel) -> AltCLIPModel:
    """AltCLIP whose text tower is `student` itself and whose every other part comes from a CLIP directory.

    Raises ValueError when the student was made for a teacher of another width.
    """
    checkpoint = _clip_checkpoint(clip)
    source = checkpoint.config(CLIPConfig)
    width = source.text_config.hidden_size
    if student.config.project_dim != width:
        raise ValueError(
            f"the text tower of the CLIP in {clip} is {width} wide, but the student projects to "
            f"{student.config.project_dim}: build the student with project_dim={width}"
        )
    vision = dataclasses.asdict(source.vision_config)
    config = AltCLIPConfig(
        text_config=student.config,
        vision_config=AltCLIPVisionConfig(**vision),
        projection_dim=source.projection_dim,
        logit_scale_init_value=source.logit_scale_init_value,
    )
    with torch.device("meta"):
        model = AltCLIPModel(config, text_model=student)
    fill(model, checkpoint, towers=AltCLIPModel.towers, without=("text_model.",))
    return model


def build_clip(
    *, vision: Mapping[str, Any], text: Mapping[str, Any], projection_dim: int, logit_scale_init_value: float
) -> CLIPModel:
    """A CLIP with random weights; the keys are those of `AltCLIPVisionConfig` and `CLIPTextConfig`."""
    return CLIPModel(
        CLIPConfig(
            text_config=CLIPTextConfig.from_fields({**text, "projection_dim": projection_dim}),
            vision_config=CLIPVisionConfig.from_fields({**vision, "projection_dim": projection_dim}),
            projection_dim=projection_dim,
            logit_scale_init_value=logit_scale_init_value,
        )
    )


def _clip_checkpoint(clip: str | Path) -> Checkpoint:
    """A CLIP directory or hub id. Raises ValueError that names the kind of any other."""
    checkpoint = open_checkpoint(clip)
    if checkpoint.model_type != CLIPConfig.model_type:
        raise ValueError(f"clip={clip} holds a model of type {checkpoint.model_type!r}, expected a whole CLIP ('clip')")
    return checkpoint

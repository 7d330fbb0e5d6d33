"""Models out of directories and parts: whatever a directory holds, students, and a CLIP that becomes an AltCLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altclip_train.models.altclip import AltCLIPModel, CLIPModel
from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    read_config_file,
)
from altclip_train.models.weights import CLIP_TOWER, XLMR_TOWER, load_published, read_tensors
from altclip_train.models.xlm_roberta import AltCLIPTextModel


def load_model(directory: str | Path) -> AltCLIPModel | CLIPModel:
    """The AltCLIP or CLIP in a directory, as its config.json says. Raises ValueError for any other kind."""
    found = read_config_file(directory).get("model_type")
    if found == AltCLIPConfig.model_type:
        return AltCLIPModel.from_pretrained(directory)
    if found == CLIPConfig.model_type:
        return CLIPModel.from_pretrained(directory)
    raise ValueError(f"{directory} holds a model of type {found!r}, expected 'altclip' or 'clip'")


def load_clip_text(clip: str | Path) -> CLIPTextModel:
    """The text tower of a CLIP directory, in eval mode; nothing else of it is read."""
    config = _clip_config(clip).text_config
    with torch.device("meta"):
        model = CLIPTextModel(config)
    load_published(model, read_tensors(clip, prefix="text_model."), towers={"": CLIP_TOWER}, source=clip)
    return model.eval()


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
    content = read_config_file(student)
    found = content.get("model_type")
    if found == AltCLIPConfig.model_type:
        config = AltCLIPConfig.from_pretrained(student).text_config
        if config.project_dim != project_dim:
            raise ValueError(
                f"the text tower in {student} projects to {config.project_dim}, the teacher's width is "
                f"{project_dim}: take a student made for this teacher, or a plain XLM-R"
            )
        tensors = read_tensors(student, prefix="text_model.")
    elif found == "xlm-roberta":
        config = AltCLIPTextConfig.from_dict({**content, "project_dim": project_dim})
        tensors = _xlmr_encoder(read_tensors(student))
    else:
        raise ValueError(f"{student} holds a model of type {found!r}, expected 'xlm-roberta' or 'altclip'")
    with torch.device("meta"):
        model = AltCLIPTextModel(dataclasses.replace(config, **dropouts))
    head = r"(pre_LN|transformation)\." if found == "xlm-roberta" else ""
    load_published(model, tensors, towers={"": XLMR_TOWER}, source=student, optional=head)
    if head:
        model.reset_head()
    return model


def assemble_altclip(clip: str | Path, student: AltCLIPTextModel) -> AltCLIPModel:
    """AltCLIP whose text tower is `student` itself and whose every other part comes from a CLIP directory.

    Raises ValueError when the student was made for a teacher of another width.
    """
    source = _clip_config(clip)
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
    tensors = {name: tensor for name, tensor in read_tensors(clip).items() if not name.startswith("text_model.")}
    load_published(model, tensors, towers=AltCLIPModel.towers, source=clip, optional=r"text_model\.")
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


def _clip_config(directory: str | Path) -> CLIPConfig:
    """Config of a CLIP directory. Raises ValueError that names the kind of any other."""
    found = read_config_file(directory).get("model_type")
    if found != CLIPConfig.model_type:
        raise ValueError(f"clip={directory} holds a model of type {found!r}, expected a whole CLIP ('clip')")
    return CLIPConfig.from_pretrained(directory)


def _xlmr_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder of an XLM-R checkpoint, saved with or without a language-model head around it."""
    inside = any(name.startswith("roberta.") for name in tensors)
    named = {name if inside else f"roberta.{name}": tensor for name, tensor in tensors.items()}
    unused = ("lm_head.", "roberta.lm_head.", "roberta.pooler.")
    return {name: tensor for name, tensor in named.items() if not name.startswith(unused)}

"""Two towers and a joint space: a whole CLIP, a whole AltCLIP, and how one becomes the other.

References: CLIP (arXiv 2103.00020), AltCLIP (arXiv 2211.06679).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    DualConfig,
    read_config_file,
)
from altclip_train.models.vision import AltCLIPVisionModel
from altclip_train.models.weights import (
    CLIP_TOWER,
    XLMR_TOWER,
    Towers,
    load_published,
    published_state,
    read_tensors,
    save_tensors,
)
from altclip_train.models.xlm_roberta import AltCLIPTextModel
from altclip_train.types import PackedTokens


@dataclass(kw_only=True)
class AltCLIPOutput:
    """What `forward` gives for B texts and N pictures."""

    logits_per_image: Tensor  # (N, B), cosine similarity times exp(logit_scale)
    logits_per_text: Tensor  # (B, N)
    text_embeds: Tensor  # (B, D), of length 1
    image_embeds: Tensor  # (N, D), of length 1
    loss: Tensor | None = None  # []


def pack_padded(input_ids: Tensor, attention_mask: Tensor | None = None) -> PackedTokens:
    """Pack padded texts, (B, L) ids and (B, L) mask; without a mask every token counts.

    Raises ValueError unless each row of the mask is ones and then zeros (padding on the right).
    """
    batch, length = input_ids.shape
    columns = torch.arange(length, device=input_ids.device)
    if attention_mask is None:
        lengths = torch.full((batch,), length, device=input_ids.device)
    else:
        lengths = attention_mask.sum(dim=1).long()  # (B,)
    real = columns < lengths[:, None]  # (B, L)
    if not bool((lengths > 0).all()) or (attention_mask is not None and not torch.equal(real, attention_mask.bool())):
        raise ValueError("each row of attention_mask must be ones followed by zeros: pad texts on the right")
    cumulative = F.pad(lengths.cumsum(0), (1, 0)).int()
    return PackedTokens(input_ids[real], cumulative, int(lengths.max()))


class DualEncoder(nn.Module):
    """What a CLIP and an AltCLIP share: the vision tower, both projections, and the features of a pair."""

    config_class: ClassVar[type[DualConfig]]
    towers: ClassVar[Towers]

    def __init__(self, config: DualConfig, text_model: CLIPTextModel | AltCLIPTextModel) -> None:
        super().__init__()
        self.config = config
        self.vision_model = AltCLIPVisionModel(config.vision_config)
        width, joint = config.vision_config.hidden_size, config.projection_dim
        self.visual_projection = nn.Linear(width, joint, bias=False)
        self.text_projection = nn.Linear(text_model.output_width, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        for projection in (self.visual_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5 * config.initializer_factor)
        self.text_model = text_model

    def encode_text(self, tokens: PackedTokens) -> Tensor:
        """Projected, not normalised: B texts -> (B, D)."""
        return self.text_projection(self.text_model.encode_packed(tokens))

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Projected, not normalised: (B, 3, R, R) -> (B, D)."""
        return self.visual_projection(self.vision_model.encode(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`encode_text` of padded texts: (B, L), (B, L) -> (B, D)."""
        return self.encode_text(pack_padded(input_ids, attention_mask))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """`encode_image`: (B, 3, R, R) -> (B, D)."""
        return self.encode_image(pixel_values)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_loss: bool = False,
    ) -> AltCLIPOutput:
        """Score texts (B, L) against pictures (N, 3, R, R); the loss wants text i to go with picture i."""
        text_embeds = F.normalize(self.get_text_features(input_ids, attention_mask), dim=-1)  # (B, D)
        image_embeds = F.normalize(self.get_image_features(pixel_values), dim=-1)  # (N, D)
        logits_per_text = self.logit_scale.exp() * text_embeds @ image_embeds.T  # (B, N)
        loss = None
        if return_loss:
            matches = torch.arange(len(logits_per_text), device=logits_per_text.device)
            loss = (F.cross_entropy(logits_per_text, matches) + F.cross_entropy(logits_per_text.T, matches)) / 2
        return AltCLIPOutput(
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            loss=loss,
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Model of a directory in the published layout, in eval mode, as float32 on the CPU."""
        config = cls.config_class.from_pretrained(directory)
        with torch.device("meta"):
            model = cls(config)  # pyright: ignore[reportCallIssue] (subclasses build their text tower themselves)
        load_published(model, read_tensors(directory), towers=cls.towers, source=directory)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the published layout."""
        save_tensors(published_state(self, towers=self.towers), directory)
        self.config.save_pretrained(directory)


class CLIPModel(DualEncoder):
    """A whole CLIP."""

    config_class = CLIPConfig
    towers: ClassVar[Towers] = {"text_model.": CLIP_TOWER, "vision_model.": CLIP_TOWER}
    config: CLIPConfig
    text_model: CLIPTextModel

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config, CLIPTextModel(config.text_config))


class AltCLIPModel(DualEncoder):
    """A whole AltCLIP. A `text_model` that exists already is taken as it is."""

    config_class = AltCLIPConfig
    towers: ClassVar[Towers] = {"text_model.": XLMR_TOWER, "vision_model.": CLIP_TOWER}
    config: AltCLIPConfig
    text_model: AltCLIPTextModel

    def __init__(self, config: AltCLIPConfig, text_model: AltCLIPTextModel | None = None) -> None:
        super().__init__(config, text_model or AltCLIPTextModel(config.text_config))


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

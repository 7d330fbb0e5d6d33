"""Two towers and a joint space: a whole CLIP and a whole AltCLIP.

References: CLIP (arXiv 2103.00020), AltCLIP (arXiv 2211.06679).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    CLIPConfig,
    DualConfig,
)
from altclip_train.models.layers import Linear
from altclip_train.models.outputs import AltCLIPOutput, TowerOutput, with_pooler_output
from altclip_train.models.pretrained import Pretrained
from altclip_train.models.spelling import CLIP_TOWER, XLMR_TOWER, Towers
from altclip_train.models.vision import AltCLIPVisionModel
from altclip_train.models.xlm_roberta import AltCLIPTextModel
from altclip_train.types import PackedTokens


def pack_padded(input_ids: Tensor, attention_mask: Tensor | None = None) -> PackedTokens:
    """Pack padded texts, (B, L) ids and (B, L) mask; without a mask every token counts.

    Raises ValueError unless each row of the mask is ones and then zeros (padding on the right).
    """
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, expected {tuple(input_ids.shape)}")
    if not is_right_padded(attention_mask):
        raise ValueError("each row of attention_mask must be ones followed by zeros: pad texts on the right")
    real = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()  # (B, L)
    lengths = real.sum(dim=1)  # (B,)
    cumulative = F.pad(lengths.cumsum(0), (1, 0)).int()
    return PackedTokens(input_ids[real], cumulative, int(lengths.max()))


def is_right_padded(attention_mask: Tensor | None) -> bool:
    """Whether each row of a mask (B, L) is ones, at least one, and then zeros; so is no mask."""
    if attention_mask is None:
        return True
    mask = attention_mask.bool()
    return bool(mask[:, 0].all() and (mask[:, 1:] <= mask[:, :-1]).all())


class DualEncoder(Pretrained):
    """What a CLIP and an AltCLIP share: the vision tower, both projections, and the features of a pair."""

    def __init__(self, config: DualConfig, text_model: CLIPTextModel | AltCLIPTextModel) -> None:
        super().__init__()
        self.config = config
        self.vision_model = AltCLIPVisionModel(config.vision_config)
        width, joint = config.vision_config.hidden_size, config.projection_dim
        self.visual_projection = Linear(width, joint, bias=False)
        self.text_projection = Linear(text_model.output_width, joint, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        for projection in (self.visual_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5 * config.initializer_factor)
        self.text_model = text_model

    @property
    def tokenizer_sha256(self) -> str | None:
        """That of the text tower, which forgets it when its vocabulary changes."""
        return self.text_model.tokenizer_sha256

    @tokenizer_sha256.setter
    def tokenizer_sha256(self, value: str | None) -> None:
        self.text_model.tokenizer_sha256 = value

    def encode_text(self, tokens: PackedTokens) -> Tensor:
        """Projected, not normalised: B texts -> (B, D)."""
        return self.text_projection(self.text_model.encode_packed(tokens))

    def encode_image(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Projected, not normalised: (B, 3, R, R) -> (B, D)."""
        return self.visual_projection(self.vision_model.encode(pixel_values, interpolate_pos_encoding))

    def get_image_features(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,  # noqa: ARG002
        output_hidden_states: bool | None = None,  # noqa: ARG002
        return_dict: bool | None = None,  # noqa: ARG002
    ) -> Tensor:
        """`encode_image`, with itself as `.pooler_output`: (B, 3, R, R) -> (B, D).

        The last three arguments are accepted, as documented, and change nothing: features are always one tensor.
        """
        return with_pooler_output(self.encode_image(pixel_values, interpolate_pos_encoding))

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None, **given: Tensor | None) -> Tensor:
        """Projected, not normalised: packed where texts are plainly right-padded, else padded. (B, L) -> (B, D)"""
        if is_right_padded(attention_mask) and all(value is None for value in given.values()):
            self.text_model.check_ids(input_ids)
            return with_pooler_output(self.encode_text(pack_padded(input_ids, attention_mask)))
        pooled = self.text_model(input_ids, attention_mask, **given).pooler_output
        return with_pooler_output(self.text_projection(pooled))

    def _score(self, text: TowerOutput, vision: TowerOutput, *, return_loss: bool | None) -> AltCLIPOutput:
        """Score B texts against N pictures; the loss wants text i to go with picture i. Raises ValueError if B != N."""
        text_embeds = F.normalize(self.text_projection(text.pooler_output), dim=-1)  # (B, D)
        image_embeds = F.normalize(self.visual_projection(vision.pooler_output), dim=-1)  # (N, D)
        logits_per_text = self.logit_scale.exp() * text_embeds @ image_embeds.T  # (B, N)
        return AltCLIPOutput(
            loss=_contrastive_loss(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )


def _contrastive_loss(logits_per_text: Tensor) -> Tensor:
    """Symmetric cross-entropy of (B, B) scores -> []."""
    texts, pictures = logits_per_text.shape
    if texts != pictures:
        raise ValueError(f"return_loss needs one text for each picture, found {texts} texts and {pictures} pictures")
    matches = torch.arange(texts, device=logits_per_text.device)
    return (F.cross_entropy(logits_per_text, matches) + F.cross_entropy(logits_per_text.T, matches)) / 2


class CLIPModel(DualEncoder):
    """A whole CLIP."""

    config_class = CLIPConfig
    towers: ClassVar[Towers] = {"text_model.": CLIP_TOWER, "vision_model.": CLIP_TOWER}
    config: CLIPConfig
    text_model: CLIPTextModel

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config, CLIPTextModel(config.text_config))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> AltCLIPOutput | tuple[Any, ...]:
        """The documented form: texts (B, L) against pictures (N, 3, R, R), both towers padded and whole."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, **asked)
        text = self.text_model(input_ids, attention_mask, position_ids, **asked)
        return self._score(text, vision, return_loss=return_loss).returned(return_dict)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,  # noqa: ARG002
        output_hidden_states: bool | None = None,  # noqa: ARG002
        return_dict: bool | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Projected, not normalised, with itself as `.pooler_output`: (B, L) -> (B, D).

        The last three arguments are accepted, as documented, and change nothing: features are always one tensor.
        """
        return self._text_features(input_ids, attention_mask, position_ids=position_ids)


class AltCLIPModel(DualEncoder):
    """A whole AltCLIP. A `text_model` that exists already is taken as it is."""

    config_class = AltCLIPConfig
    towers: ClassVar[Towers] = {"text_model.": XLMR_TOWER, "vision_model.": CLIP_TOWER}
    config: AltCLIPConfig
    text_model: AltCLIPTextModel

    def __init__(self, config: AltCLIPConfig, text_model: AltCLIPTextModel | None = None) -> None:
        super().__init__(config, text_model or AltCLIPTextModel(config.text_config))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> AltCLIPOutput | tuple[Any, ...]:
        """The documented form: texts (B, L) against pictures (N, 3, R, R), both towers padded and whole."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, **asked)
        text = self.text_model(input_ids, attention_mask, token_type_ids, position_ids, **asked)
        return self._score(text, vision, return_loss=return_loss).returned(return_dict)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,  # noqa: ARG002
        output_hidden_states: bool | None = None,  # noqa: ARG002
        return_dict: bool | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Projected, not normalised, with itself as `.pooler_output`: (B, L) -> (B, D).

        The last three arguments are accepted, as documented, and change nothing: features are always one tensor.
        """
        return self._text_features(input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids)

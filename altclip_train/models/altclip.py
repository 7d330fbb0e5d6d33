"""Two towers and a joint space: a whole CLIP, a whole AltCLIP, and how one becomes the other.

References: CLIP (arXiv 2103.00020), AltCLIP (arXiv 2211.06679).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import (
    AltCLIPConfig,
    CLIPConfig,
    DualConfig,
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

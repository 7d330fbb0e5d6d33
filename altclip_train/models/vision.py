"""CLIP's vision transformer (arXiv 2103.00020): patches, a class token, pre-norm blocks."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altclip_train.models.attention import PackedLayout, PaddedLayout
from altclip_train.models.config import AltCLIPVisionConfig
from altclip_train.models.layers import Conv2d, Embedding, PreNormBlock, run_blocks, run_packed_blocks
from altclip_train.models.outputs import TowerOutput
from altclip_train.models.pretrained import Pretrained
from altclip_train.models.spelling import CLIP_TOWER, Towers


class VisionEmbeddings(nn.Module):
    """Patches of a picture by a strided convolution, the class token before them, and positions."""

    def __init__(self, config: AltCLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = Embedding(config.num_positions, width)
        self.side = config.image_size // patch

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) or another height and width -> (B, P, W)."""
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        rows, columns = patches.shape[2:]
        patches = patches.flatten(2).transpose(1, 2)  # (B, P - 1, W)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)  # (B, 1, W); len() would fix B in an export
        return torch.cat([class_token, patches], dim=1) + self._positions(rows, columns)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position vectors (P, W), interpolated where the grid of patches is not the one they were trained on."""
        table = self.position_embedding.weight
        if rows == self.side and columns == self.side:
            return table
        grid = table[1:].T.unflatten(1, (self.side, self.side))[None]  # (1, W, side, side)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], grid[0].flatten(1).T])


class AltCLIPVisionModel(Pretrained):
    """Vision tower of a CLIP and of an AltCLIP."""

    config_class = AltCLIPVisionConfig
    towers: ClassVar[Towers] = {"": CLIP_TOWER}
    part: ClassVar[str] = "vision_model."
    config: AltCLIPVisionConfig

    def __init__(self, config: AltCLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            PreNormBlock(
                width=config.hidden_size,
                heads=config.num_attention_heads,
                hidden=config.intermediate_size,
                activation=config.hidden_act,
                eps=config.layer_norm_eps,
                dropout=config.attention_dropout,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TowerOutput | tuple[Any, ...]:
        """The documented form: the states of every patch, `last_hidden_state` before the last norm.

        `interpolate_pos_encoding` takes pictures of any height and width. Raises ValueError as `encode` does.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing: the processor makes them of images=")
        self._check_size(pixel_values, interpolate_pos_encoding)
        x = self.pre_layernorm(self.embeddings(pixel_values))  # (B, P, W)
        layout = PaddedLayout.of(None, x, weights=bool(output_attentions))
        x, states = run_blocks(self.layers, x, layout, keep_states=bool(output_hidden_states))
        return TowerOutput(x, self.post_layernorm(x[:, 0]), states, layout.attentions).returned(return_dict)

    def _check_size(self, pixel_values: Tensor, interpolate_pos_encoding: bool) -> None:
        channels, size, patch = self.config.num_channels, self.config.image_size, self.config.patch_size
        found = tuple(pixel_values.shape)
        if interpolate_pos_encoding:
            if len(found) != 4 or found[1] != channels or min(found[2:]) < patch:
                raise ValueError(
                    f"pixel_values are {found}, expected (B, {channels}, height, width), both at least {patch}"
                )
        elif found[1:] != (channels, size, size):
            raise ValueError(
                f"pixel_values are {found}, expected (B, {channels}, {size}, {size}): resize and crop the pictures, "
                "or pass interpolate_pos_encoding=True"
            )

    def encode(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Normalised class token of each picture: (B, 3, R, R) -> (B, W). Raises ValueError for another R."""
        self._check_size(pixel_values, interpolate_pos_encoding)
        x = self.pre_layernorm(self.embeddings(pixel_values))  # (B, P, W)
        layout = PackedLayout.dense(x.shape[0], x.shape[1], x.device)
        x = x.flatten(0, 1)  # (B * P, W)
        return self.post_layernorm(run_packed_blocks(self.layers, x, layout, layout.starts))  # (B, W)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """CLIP's initialisation."""
        config = self.config
        std = config.initializer_range * config.initializer_factor
        nn.init.normal_(self.embeddings.class_embedding, std=config.hidden_size**-0.5 * config.initializer_factor)
        nn.init.normal_(self.embeddings.patch_embedding.weight, std=std)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=std)
        for block in self.layers:
            assert isinstance(block, PreNormBlock)
            block.reset_parameters(depth=config.num_hidden_layers, factor=config.initializer_factor)

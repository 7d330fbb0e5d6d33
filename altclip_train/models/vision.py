"""CLIP's vision transformer (arXiv 2103.00020): patches, a class token, pre-norm blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altclip_train.models.config import AltCLIPVisionConfig
from altclip_train.models.layers import PackedLayout, PreNormBlock


class VisionEmbeddings(nn.Module):
    """Patches of a picture by a strided convolution, the class token before them, and positions."""

    def __init__(self, config: AltCLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.num_positions, width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, P, W)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (B, P - 1, W)
        class_token = self.class_embedding.expand(len(patches), 1, -1)  # (B, 1, W)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class AltCLIPVisionModel(nn.Module):
    """Vision tower of a CLIP and of an AltCLIP."""

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

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Normalised class token of each picture: (B, 3, R, R) -> (B, W). Raises ValueError for another R."""
        channels, size = self.config.num_channels, self.config.image_size
        if pixel_values.shape[1:] != (channels, size, size):
            raise ValueError(f"pixel_values are {tuple(pixel_values.shape)}, expected (B, {channels}, {size}, {size})")
        x = self.pre_layernorm(self.embeddings(pixel_values))  # (B, P, W)
        layout = PackedLayout.dense(x.shape[0], x.shape[1], x.device)
        x = x.flatten(0, 1)  # (B * P, W)
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, layout)
        return self.post_layernorm(last(x, layout, layout.starts))  # (B, W)

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

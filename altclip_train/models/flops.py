"""Floating-point operations of the towers on real tokens and patches: two for each multiply-add of a matrix product.

What is not computed does not count: padding, and in the last block everything that no pooled row needs. Counts of
texts are tensors on the device of their lengths, so that nobody waits for a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altclip_train.models.altclip import DualEncoder
from altclip_train.models.clip_text import CLIPTextModel
from altclip_train.models.config import TowerConfig
from altclip_train.models.xlm_roberta import AltCLIPTextModel
from altclip_train.types import PackedTokens

# Dense bfloat16, in FLOP/s, from the makers' data sheets; by what a device's name holds.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "L40S": 362e12, "A100": 312e12, "V100": 125e12}


def text_flops(tower: AltCLIPTextModel | CLIPTextModel, tokens: PackedTokens) -> Tensor:
    """Of `encode_packed`, forward alone: an int64 scalar."""
    flops = _blocks(tower.config, tokens.lengths.long(), causal=isinstance(tower, CLIPTextModel))
    if isinstance(tower, AltCLIPTextModel):
        flops = flops + 2 * tower.transformation.weight.numel() * len(tokens.lengths)
    return flops


def image_flops(model: DualEncoder, pictures: int) -> int:
    """Of `encode_image` on that many pictures, forward alone."""
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    flops = int(_blocks(config, torch.full((pictures,), patches + 1), causal=False))
    flops += 2 * config.num_channels * config.patch_size**2 * config.hidden_size * patches * pictures
    return flops + 2 * model.visual_projection.weight.numel() * pictures


def peak_flops(device_name: str) -> float | None:
    """FLOP/s that a device reaches at best in dense bfloat16; None for an unknown one."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def _blocks(config: TowerConfig, lengths: Tensor, *, causal: bool) -> Tensor:
    """All transformer blocks on sequences of these lengths, the last one for one row of each."""
    width, hidden = config.hidden_size, config.intermediate_size
    rows, tokens, squares = len(lengths), lengths.sum(), lengths.square().sum()
    block = (8 * width**2 + 4 * width * hidden) * tokens + 4 * width * squares
    if causal:  # one query would not know what it may see: all attend
        last = 6 * width**2 * tokens + 4 * width * squares + 2 * width**2 * rows
    else:
        last = 4 * width**2 * tokens + 4 * width * tokens + 4 * width**2 * rows
    return (config.num_hidden_layers - 1) * block + last + 4 * width * hidden * rows

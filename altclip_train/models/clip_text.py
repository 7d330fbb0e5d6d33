"""CLIP's text transformer (arXiv 2103.00020): the frozen teacher of stage one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altclip_train.models.config import LEGACY_EOS_TOKEN_ID, CLIPTextConfig
from altclip_train.models.layers import PackedLayout, PreNormBlock, use_variable_length
from altclip_train.types import PackedTokens


class CLIPTextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """(T,), (T,) -> (T, W)."""
        return self.token_embedding(input_ids) + self.position_embedding(position)


class CLIPTextModel(nn.Module):
    """Causal text tower; a text's vector is the state of its end-of-text token."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = CLIPTextEmbeddings(config)
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
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reset_parameters()

    @property
    def output_width(self) -> int:
        """Width of what `encode_packed` gives."""
        return self.config.hidden_size

    def encode_packed(self, tokens: PackedTokens) -> Tensor:
        """End-of-text state after `final_layer_norm`, before `text_projection`: B texts -> (B, W).

        This is the target of stage one. Raises ValueError for a text that is too long.
        """
        limit = self.config.max_position_embeddings
        if tokens.max_length > limit:
            raise ValueError(f"a text has {tokens.max_length} tokens, this tower takes {limit}: lower max_length")
        dropout = self.config.attention_dropout if self.training else 0.0
        layout, input_ids = PackedLayout.of(
            tokens,
            causal=True,
            variable_length=use_variable_length(self.final_layer_norm.weight, dropout=dropout),
        )
        x = self.embeddings(input_ids, layout.position)  # (T, W)
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, layout)
        x = last(x, layout, self._end_of_text_rows(input_ids, layout))  # (B, W)
        return layout.restore(self.final_layer_norm(x))

    def _end_of_text_rows(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Row of each text's pooled token: (T,) -> (B,).

        A config with the legacy id pools at the (first) highest id, any other at the first `eos_token_id`.
        """
        legacy = self.config.eos_token_id == LEGACY_EOS_TOKEN_ID
        score = input_ids if legacy else (input_ids == self.config.eos_token_id).long()  # (T,)
        padded = score.new_full((len(layout.starts), layout.max_length), -1)  # (B, L)
        padded[layout.text, layout.position] = score
        return layout.starts + padded.argmax(dim=1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """CLIP's initialisation."""
        config = self.config
        std = 0.02 * config.initializer_factor
        nn.init.normal_(self.embeddings.token_embedding.weight, std=std)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=std)
        for block in self.layers:
            assert isinstance(block, PreNormBlock)
            block.reset_parameters(depth=config.num_hidden_layers, factor=config.initializer_factor)

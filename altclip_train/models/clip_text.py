"""CLIP's text transformer (arXiv 2103.00020): the frozen teacher of stage one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from altclip_train.models.attention import PackedLayout, PaddedLayout, attention_form
from altclip_train.models.config import LEGACY_EOS_TOKEN_ID, CLIPTextConfig
from altclip_train.models.layers import (
    Embedding,
    PreNormBlock,
    WordEmbedding,
    check_indices,
    run_blocks,
    run_packed_blocks,
)
from altclip_train.models.outputs import TowerOutput
from altclip_train.models.pretrained import Pretrained
from altclip_train.models.spelling import CLIP_TOWER, Towers
from altclip_train.types import PackedTokens


class CLIPTextEmbeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = WordEmbedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """(T,), (T,) -> (T, W); (B, L), (B, L) -> (B, L, W)."""
        return self.token_embedding(input_ids) + self.position_embedding(position)


class CLIPTextModel(Pretrained):
    """Causal text tower; a text's vector is the state of its end-of-text token."""

    config_class = CLIPTextConfig
    towers: ClassVar[Towers] = {"": CLIP_TOWER}
    part: ClassVar[str] = "text_model."
    config: CLIPTextConfig

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
            form=attention_form(self.final_layer_norm.weight, dropout=dropout),
        )
        x = self.embeddings(input_ids, layout.position)  # (T, W)
        x = run_packed_blocks(self.layers, x, layout, self._end_of_text_rows(input_ids, layout))  # (B, W)
        return layout.restore(self.final_layer_norm(x))

    def _end_of_text_rows(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Row of each text's pooled token: (T,) -> (B,)."""
        score = self._end_of_text_score(input_ids)  # (T,)
        padded = score.new_full((len(layout.starts), layout.max_length), -1)  # (B, L)
        padded[layout.text, layout.position] = score
        return layout.starts + padded.argmax(dim=1)

    def _end_of_text_score(self, input_ids: Tensor) -> Tensor:
        """Integers of the same shape; a text is pooled at the first place of its highest.

        A config with the legacy id pools at the (first) highest id, any other at the first `eos_token_id`.
        """
        legacy = self.config.eos_token_id == LEGACY_EOS_TOKEN_ID
        return input_ids if legacy else (input_ids == self.config.eos_token_id).long()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TowerOutput | tuple[Any, ...]:
        """The documented form: every position of padded texts (B, L) after `final_layer_norm`.

        Raises ValueError for ids or positions that have no row.
        """
        if input_ids is None:
            raise ValueError("input_ids are missing")
        self.check_ids(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]  # (1, L)
        limit = self.config.max_position_embeddings
        check_indices(
            position_ids, self.embeddings.position_embedding, f"a position that the table of {limit} does not have"
        )
        x = self.embeddings(input_ids, position_ids)  # (B, L, W)
        layout = PaddedLayout.of(attention_mask, x, causal=True, weights=bool(output_attentions))
        x, states = run_blocks(self.layers, x, layout, keep_states=bool(output_hidden_states))
        x = self.final_layer_norm(x)
        ends = self._end_of_text_score(input_ids).argmax(dim=1)  # (B,)
        pooled = x[torch.arange(x.shape[0], device=x.device), ends]  # (B, W)
        return TowerOutput(x, pooled, states, layout.attentions).returned(return_dict)

    def check_ids(self, input_ids: Tensor) -> None:
        """Raise ValueError for a token id outside of the vocabulary."""
        check_indices(
            input_ids,
            self.embeddings.token_embedding,
            f"a token id outside of this tower's vocabulary of {self.config.vocab_size}: "
            "these ids come from another tokenizer",
        )

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

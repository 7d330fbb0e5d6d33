"""The student: XLM-R (arXiv 1911.02116), then AltCLIP's head `[CLS] -> pre_LN -> transformation`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altclip_train.models.config import AltCLIPTextConfig
from altclip_train.models.layers import PackedLayout, PostNormBlock, use_variable_length
from altclip_train.types import PackedTokens


class XLMREmbeddings(nn.Module):
    """Word plus token type (always 0) plus position, then a norm."""

    def __init__(self, config: AltCLIPTextConfig) -> None:
        super().__init__()
        self.padding_id = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """(T,) -> (T, W)."""
        x = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        x = x + self.position_embeddings(self._positions(input_ids, layout))
        return self.dropout(self.norm(x))

    def _positions(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Fairseq's rule: real tokens count up from padding id + 1, padding has its id. (T,) -> (T,)"""
        real = (input_ids != self.padding_id).long()
        count = real.cumsum(0)
        before = (count - real)[layout.starts]  # (B,)
        return (count - before[layout.text]) * real + self.padding_id


class AltCLIPTextModel(nn.Module):
    """XLM-R and the projection of its `[CLS]` state to the width of the teacher."""

    def __init__(self, config: AltCLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = XLMREmbeddings(config)
        self.layers = nn.ModuleList(
            PostNormBlock(
                width=config.hidden_size,
                heads=config.num_attention_heads,
                hidden=config.intermediate_size,
                activation=config.hidden_act,
                eps=config.layer_norm_eps,
                dropout=config.hidden_dropout_prob,
                attention_dropout=config.attention_probs_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.pre_LN = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformation = nn.Linear(config.hidden_size, config.project_dim)
        self.reset_parameters()

    @property
    def output_width(self) -> int:
        """Width of what `encode_packed` gives: that of the teacher."""
        return self.config.project_dim

    def encode_packed(self, tokens: PackedTokens) -> Tensor:
        """Projected `[CLS]` state: B texts -> (B, project_dim). Raises ValueError for a too long text."""
        limit = self.config.max_tokens
        if tokens.max_length > limit:
            raise ValueError(f"a text has {tokens.max_length} tokens, this tower takes {limit}: lower max_length")
        first = self.layers[0]
        assert isinstance(first, PostNormBlock)
        dropout = first.attention.active_dropout
        layout, input_ids = PackedLayout.of(
            tokens, causal=False, variable_length=use_variable_length(self.pre_LN.weight, dropout=dropout)
        )
        x = self.embeddings(input_ids, layout)  # (T, W)
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, layout)
        x = last(x, layout, layout.starts)  # (B, W)
        return layout.restore(self.transformation(self.pre_LN(x)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """RoBERTa's initialisation, for the head too."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.embeddings.word_embeddings.weight[self.config.pad_token_id].zero_()
        self.embeddings.position_embeddings.weight[self.config.pad_token_id].zero_()

    @torch.no_grad()
    def reset_head(self) -> None:
        """Fresh `pre_LN` and `transformation` on the device of the encoder: what a plain XLM-R lacks."""
        device = self.embeddings.word_embeddings.weight.device
        self.pre_LN.to_empty(device=device).reset_parameters()
        self.transformation.to_empty(device=device)
        nn.init.normal_(self.transformation.weight, std=self.config.initializer_range)
        nn.init.zeros_(self.transformation.bias)

"""The student: XLM-R (arXiv 1911.02116), then AltCLIP's head `[CLS] -> pre_LN -> transformation`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from altclip_train.models.attention import PackedLayout, PaddedLayout, attention_form
from altclip_train.models.config import AltCLIPTextConfig
from altclip_train.models.layers import (
    Embedding,
    Linear,
    PostNormBlock,
    WordEmbedding,
    check_indices,
    run_blocks,
    run_packed_blocks,
)
from altclip_train.models.outputs import TowerOutput
from altclip_train.models.pretrained import Pretrained
from altclip_train.models.spelling import LONE_XLMR_TOWER, Towers
from altclip_train.types import PackedTokens


class XLMREmbeddings(nn.Module):
    """Word plus token type (always 0) plus position, then a norm."""

    def __init__(self, config: AltCLIPTextConfig) -> None:
        super().__init__()
        self.padding_id = config.pad_token_id
        width, padding = config.hidden_size, config.pad_token_id
        self.word_embeddings: nn.Embedding = WordEmbedding(config.vocab_size, width, padding_idx=padding)
        self.position_embeddings = Embedding(config.max_position_embeddings, width, padding_idx=padding)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Word vectors (..., W) and positions (...) -> (..., W)."""
        types = self.token_type_embeddings
        x = words + (types.weight[0] if token_type_ids is None else types(token_type_ids))
        return self.dropout(self.norm(x + self.position_embeddings(position_ids)))

    def packed_positions(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """Fairseq's rule: real tokens count up from padding id + 1, padding has its id. (T,) -> (T,)"""
        real = (input_ids != self.padding_id).long()
        count = real.cumsum(0)
        before = (count - real)[layout.starts]  # (B,)
        return (count - before[layout.text]) * real + self.padding_id

    def padded_positions(self, input_ids: Tensor) -> Tensor:
        """The same rule for padded texts: (B, L) -> (B, L)."""
        real = (input_ids != self.padding_id).long()
        return real.cumsum(1) * real + self.padding_id


class AltCLIPTextModel(Pretrained):
    """XLM-R and the projection of its `[CLS]` state to the width of the teacher."""

    config_class = AltCLIPTextConfig
    towers: ClassVar[Towers] = {"": LONE_XLMR_TOWER}
    part: ClassVar[str] = "text_model."
    config: AltCLIPTextConfig

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
        self.transformation = Linear(config.hidden_size, config.project_dim)
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
            tokens, causal=False, form=attention_form(self.pre_LN.weight, dropout=dropout)
        )
        words = self.embeddings.word_embeddings(input_ids)  # (T, W)
        x = self.embeddings(words, self.embeddings.packed_positions(input_ids, layout))  # (T, W)
        x = run_packed_blocks(self.layers, x, layout, layout.starts)  # (B, W)
        return layout.restore(self.transformation(self.pre_LN(x)))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TowerOutput | tuple[Any, ...]:
        """The documented form: every position of padded texts (B, L), the projected state of each token.

        `hidden_states` are those of XLM-R, before pre_LN. Raises ValueError for ids or positions that have no row.
        """
        words, position_ids = self._words_and_positions(input_ids, inputs_embeds, position_ids)
        x = self.embeddings(words, position_ids, token_type_ids)  # (B, L, W)
        layout = PaddedLayout.of(attention_mask, x, weights=bool(output_attentions))
        x, states = run_blocks(self.layers, x, layout, keep_states=bool(output_hidden_states))
        projected = self.transformation(self.pre_LN(x))  # (B, L, project_dim)
        return TowerOutput(projected, projected[:, 0], states, layout.attentions).returned(return_dict)

    def _words_and_positions(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(B, L, W) word vectors and (B, L) or (1, L) positions of what `forward` was given."""
        if input_ids is not None and inputs_embeds is None:
            self.check_ids(input_ids)
            words = self.embeddings.word_embeddings(input_ids)
            positions = self.embeddings.padded_positions(input_ids)
        elif inputs_embeds is not None and input_ids is None:
            words = inputs_embeds
            first = self.config.pad_token_id + 1
            positions = torch.arange(first, first + words.shape[1], device=words.device)[None]
        else:
            raise ValueError("give either input_ids or inputs_embeds, not both and not neither")
        positions = positions if position_ids is None else position_ids
        check_indices(
            positions,
            self.embeddings.position_embeddings,
            f"a position that the table of {self.config.max_position_embeddings} does not have: positions start at "
            f"{self.config.pad_token_id + 1}, so this tower takes {self.config.max_tokens} tokens: lower max_length",
        )
        return words, positions

    def check_ids(self, input_ids: Tensor) -> None:
        """Raise ValueError for a token id outside of the vocabulary."""
        size = self.config.vocab_size
        check_indices(
            input_ids,
            self.embeddings.word_embeddings,
            f"a token id outside of this tower's vocabulary of {size}: these ids come from another tokenizer",
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of word vectors."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Take another table of word vectors; `config.vocab_size` follows, and the tokenizer is no longer known."""
        self.embeddings.word_embeddings = value
        self.config.vocab_size = value.num_embeddings
        self.tokenizer_sha256 = None

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Cut the word vectors to the first `new_num_tokens` rows, or add rows: each the mean of those there.

        The tokenizer of another number of rows is no longer known: what is saved fits any. Raises ValueError where
        the padding token would fall away.
        """
        old = self.embeddings.word_embeddings.weight
        if new_num_tokens == len(old):
            return self.embeddings.word_embeddings
        padding = self.config.pad_token_id
        if new_num_tokens <= padding:
            raise ValueError(f"new_num_tokens={new_num_tokens} leaves no row for pad_token_id={padding}")
        added = max(new_num_tokens - len(old), 0)
        rows = torch.cat([old[:new_num_tokens], old.mean(0, keepdim=True).expand(added, -1)])
        table = nn.Embedding.from_pretrained(rows, freeze=not old.requires_grad, padding_idx=padding)
        self.set_input_embeddings(table)
        return table

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

"""Towers and texts of the comparisons of whole training steps: the same weights and token ids on every side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

BOS, PAD, EOS, FIRST_WORD = 0, 1, 2, 4  # XLM-R's
CLIP_VOCABULARY = 49408  # its last two are the begin and end of a text
LONGEST = 77

CLIP_B32: dict[str, Any] = {
    "vision": {"image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu"},
    "text": {"vocab_size": CLIP_VOCABULARY, "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8}
    | {"intermediate_size": 2048, "hidden_act": "quick_gelu", "eos_token_id": CLIP_VOCABULARY - 1},
    "projection_dim": 512,
    "logit_scale_init_value": 2.6592,
}
CLIP_L14: dict[str, Any] = {
    **CLIP_B32,
    "vision": {**CLIP_B32["vision"], "patch_size": 14, "hidden_size": 1024, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "intermediate_size": 4096},
    "text": {**CLIP_B32["text"], "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "projection_dim": 768,
}
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
CLIPS: dict[str, dict[str, Any]] = {
    "tiny": {**CLIP_B32, "vision": {**CLIP_B32["vision"], **NARROW}, "text": {**CLIP_B32["text"], **NARROW}},
    "small": CLIP_B32,
    "base": CLIP_B32,
    "large": CLIP_L14,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"intermediate_size": 64},
    "small": {"vocab_size": 32_000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
    | {"intermediate_size": 1536},
    "base": {"vocab_size": 250_002, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"intermediate_size": 3072},
    "large": {"vocab_size": 250_002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"intermediate_size": 4096},
}


class Texts(NamedTuple):
    """Texts as every side takes them: padded to the longest of the batch."""

    input_ids: Tensor  # (B, L)
    mask: Tensor  # (B, L), 1 for a token

    def to(self, device: str) -> Texts:
        return Texts(self.input_ids.to(device), self.mask.to(device))


def write_models(directory: Path, size: str) -> None:
    """A CLIP and an AltCLIP around a student of that size, in published layouts, once."""
    from altclip_train.models import assemble_altclip, build_clip, build_text_student

    if (directory / "altclip" / "config.json").exists():
        return
    torch.manual_seed(0)
    shape = CLIPS[size]
    build_clip(**shape).save_pretrained(directory / "clip")
    student = build_text_student(
        student=None,
        project_dim=shape["text"]["hidden_size"],
        max_position_embeddings=514,
        pad_token_id=PAD,
        **STUDENTS[size],
    )
    assemble_altclip(directory / "clip", student).save_pretrained(directory / "altclip")


def draw_texts(count: int, vocabulary: int, seed: int, *, clip: bool = False) -> Texts:
    """Random token ids in captions of lognormal length: mean 16 tokens, sigma 0.5, clipped to 4..77."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randn(count, generator=generator).mul(0.5).add(math.log(16) - 0.125).exp().round()
    lengths = lengths.clamp(4, LONGEST).long()
    longest = int(lengths.max())
    first, words = (CLIP_VOCABULARY - 2, (0, CLIP_VOCABULARY - 2)) if clip else (BOS, (FIRST_WORD, vocabulary))
    ids = torch.randint(*words, (count, longest), generator=generator)
    place = torch.arange(longest)
    ids[:, 0] = first
    ids[place == lengths[:, None] - 1] = CLIP_VOCABULARY - 1 if clip else EOS
    mask = place < lengths[:, None]
    return Texts(ids.masked_fill(~mask, CLIP_VOCABULARY - 1 if clip else PAD), mask.long())


class Words:
    """A tokenizer whose word ``w12`` is token 12, so that every side encodes the same token ids at no cost."""

    def encode_batch(self, texts: list[str], max_length: int) -> list[list[int]]:
        return [[BOS, *(int(word[1:]) for word in text.split()), EOS][:max_length] for text in texts]

    def padded(self, texts: list[str], length: int | None = None) -> Tensor:
        """(B, L) ids, L the longest text's or `length`."""
        rows = self.encode_batch(texts, LONGEST)
        length = length or max(map(len, rows))
        return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


def draw_prompts(classes: int, templates: int, vocabulary: int) -> tuple[list[str], list[str]]:
    """Class names of 1 to 4 tokens and templates of 3 to 12 around them, as ImageNet's in Chinese and English have."""
    generator = torch.Generator().manual_seed(0)

    def words(low: int, high: int) -> list[str]:
        count = int(torch.randint(low, high + 1, (1,), generator=generator))
        return [f"w{n}" for n in torch.randint(FIRST_WORD, vocabulary, (count,), generator=generator).tolist()]

    names = [" ".join(words(1, 4)) for _ in range(classes)]
    return names, [" ".join([*words(1, 6), "{c}", *words(2, 6)]) for _ in range(templates)]


def sums(steps: Iterable[dict[str, float]]) -> dict[str, float]:
    """Figures of the steps of a round, added up; the loss is that of the first."""
    first, *rest = steps
    return {
        name: value if name == "loss" else value + sum(step[name] for step in rest) for name, value in first.items()
    }

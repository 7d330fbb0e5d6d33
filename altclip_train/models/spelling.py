"""How published weights are spelled, and how our modules are.

The names of `transformers` are the common language here: our parameters have one or, where queries, keys and
values are one matrix, three of them; every other spelling is renamed to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from altclip_train.models.weight_files import Stored

TEXT, VISION = "text_model.", "vision_model."


@dataclass(frozen=True, kw_only=True)
class TowerLayout:
    """Published spelling of one kind of tower; names are relative to the tower."""

    layers: str
    block: Mapping[str, tuple[str, ...]]  # our part of a block -> published parts, fused in this order
    rest: Mapping[str, str]  # our prefix -> published prefix, first match wins

    def published(self, name: str) -> tuple[str, ...]:
        """Published names of the tensors that make up our tensor `name`."""
        in_block = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if in_block:
            number, part, kind = in_block.groups()
            return tuple(f"{self.layers}.{number}.{published}.{kind}" for published in self.block[part])
        for ours, published in self.rest.items():
            if name.startswith(f"{ours}."):
                return (published + name.removeprefix(ours),)
        return (name,)


CLIP_TOWER = TowerLayout(
    layers="encoder.layers",
    block={
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.out": ("self_attn.out_proj",),
        "norm1": ("layer_norm1",),
        "norm2": ("layer_norm2",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
    rest={"pre_layernorm": "pre_layrnorm"},
)

XLMR_TOWER = TowerLayout(
    layers="roberta.encoder.layer",
    block={
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "norm1": ("attention.output.LayerNorm",),
        "norm2": ("output.LayerNorm",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    rest={"embeddings.norm": "roberta.embeddings.LayerNorm", "embeddings": "roberta.embeddings"},
)

# Of an XLM-R tower that is saved alone: `transformers` reads `layer` for `layers` in whole models only.
LONE_XLMR_TOWER = replace(XLMR_TOWER, layers="roberta.encoder.layers")

Towers = Mapping[str, TowerLayout]  # our module prefix, with its dot ("" for a tower alone) -> layout


def published_names(ours: str, towers: Towers) -> tuple[str, ...]:
    """Published names of the tensors that make up our parameter `ours`."""
    for prefix, layout in towers.items():
        if ours.startswith(prefix):
            return tuple(prefix + name for name in layout.published(ours.removeprefix(prefix)))
    return (ours,)


# OpenAI's names, which open_clip keeps, and those of `transformers`: whole words between dots. Read from the first row
# to the last, written from the last to the first.
_OPENAI = (
    ("visual.proj", "visual_projection.weight"),
    ("text_projection", "text_projection.weight"),
    ("visual", "vision_model"),
    ("token_embedding", "embeddings.token_embedding"),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("conv1", "embeddings.patch_embedding"),
    ("ln_pre", "pre_layrnorm"),
    ("ln_post", "post_layernorm"),
    ("ln_final", "final_layer_norm"),
    ("transformer.resblocks", "encoder.layers"),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.in_proj_weight", "self_attn.in_proj.weight"),  # queries, keys and values in one
    ("attn.in_proj_bias", "self_attn.in_proj.bias"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_OPENAI_TEXT = re.compile(r"(transformer|token_embedding|ln_final)\..*|positional_embedding")  # a tower without a name
OPENAI_TRANSPOSED = ("visual.proj", "text_projection")


def from_openai_name(name: str) -> str:
    """A name of OpenAI's or open_clip's, which may put `text.` before the text tower's, as `transformers` has it."""
    name = name.removeprefix("text.")
    return _replace_words(TEXT + name if _OPENAI_TEXT.fullmatch(name) else name, _OPENAI)


def openai_name(ours: str, towers: Towers) -> str:
    """OpenAI's name of our parameter `ours` of a CLIP, which is one tensor there as here."""
    first, *more = published_names(ours, towers)
    fused = first.replace(".q_proj.", ".in_proj.") if more else first
    return _replace_words(fused, ((theirs, own) for own, theirs in reversed(_OPENAI))).removeprefix(TEXT)


def _replace_words(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        name = re.sub(rf"\b{re.escape(old)}\b", new, name)
    return name


# What older checkpoints store although it is no weight: tables of positions, causal masks, sizes of the model.
_CONSTANTS = re.compile(
    r"(.*\.)?embeddings\.(position_ids|token_type_ids)|(text\.)?attn_mask|input_resolution|context_length|vocab_size"
)
# Heads for which an XLM-R was pretrained; a student has its own.
_XLMR_HEADS = re.compile(r"(roberta\.)?(lm_head|pooler)\..*")


def canonical(name: str) -> str:
    """One spelling of the two that both towers' blocks have: `encoder.layer.N` and `encoder.layers.N`."""
    return re.sub(r"\bencoder\.layer\.(?=\d)", "encoder.layers.", name)


def respell(tensors: Mapping[str, Stored], model_type: str | None) -> dict[str, Stored]:
    """Weights of a whole model, a tower or an XLM-R under the names they have in a whole `transformers` model."""
    kept = {name: stored for name, stored in tensors.items() if not _CONSTANTS.fullmatch(name)}
    if any(name.startswith("visual.") for name in kept):
        renamed = _from_openai(kept)
    else:
        renamed = _in_whole_model(kept, model_type)
    found: dict[str, Stored] = {}
    for name, stored in renamed:
        if canonical(name) in found:
            twice = found[canonical(name)].name
            raise ValueError(f"{stored.file} holds the same tensor as {twice} and as {stored.name}: remove one")
        found[canonical(name)] = stored
    return found


def _from_openai(tensors: Mapping[str, Stored]) -> list[tuple[str, Stored]]:
    renamed = []
    for name, stored in tensors.items():
        published = from_openai_name(name)
        if ".self_attn.in_proj." in published and stored.shape and stored.shape[0] % 3 == 0:
            width = stored.shape[0] // 3
            for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
                third = stored._replace(shape=(width, *stored.shape[1:]), first_row=number * width)
                renamed.append((published.replace("in_proj", part), third))
        elif name.removeprefix("text.") in OPENAI_TRANSPOSED:
            renamed.append((published, stored._replace(shape=stored.shape[::-1], transposed=True)))
        else:
            renamed.append((published, stored))
    return renamed


def _in_whole_model(tensors: Mapping[str, Stored], model_type: str | None) -> list[tuple[str, Stored]]:
    """Put the prefix of a tower before names that lack it, because it was saved alone."""
    prefix = ""
    if model_type == "xlm-roberta":
        tensors = {name: stored for name, stored in tensors.items() if not _XLMR_HEADS.fullmatch(name)}
        prefix = TEXT if any(name.startswith("roberta.") for name in tensors) else f"{TEXT}roberta."
    elif model_type in ("clip_text_model", "altclip_text_model"):
        prefix = TEXT
    elif model_type in ("clip_vision_model", "altclip_vision_model"):
        prefix = VISION
    if any(name.startswith(prefix) for name in tensors):
        prefix = ""
    return [(prefix + name, stored) for name, stored in tensors.items()]

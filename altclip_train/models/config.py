"""Shapes of the towers, under the field names, defaults and `config.json` layout of the published models."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from altclip_train.models.config_base import StoredConfig

ACTIVATIONS = ("gelu", "quick_gelu")

# CLIP configs published before the real id was written down say 2 and mean "the highest id of the text".
LEGACY_EOS_TOKEN_ID = 2


@dataclass(kw_only=True)
class TowerConfig(StoredConfig):
    """Base of the tower configs."""

    part: ClassVar[str]  # its key in the config of a whole model
    wholes: ClassVar[tuple[str, ...]]  # the whole models that have it
    same: ClassVar[tuple[str, ...]] = ()  # other names of the same tower

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        self._require_sizes("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{type(self).__name__}: hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: hidden_act={self.hidden_act!r} is unknown, "
                f"expected one of {', '.join(ACTIVATIONS)}"
            )
        self._require_numbers("layer_norm_eps", "initializer_range", "initializer_factor")
        if not self.layer_norm_eps > 0:
            raise ValueError(f"{type(self).__name__}: layer_norm_eps={self.layer_norm_eps} must be above 0")

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build from hand-written fields: an unknown key is an error that suggests the nearest one."""
        known = [entry.name for entry in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
                raise ValueError(f"{cls.__name__} has no field {key!r}: {hint}")
        return cls(**fields)

    @classmethod
    def of_model(cls, content: Mapping[str, Any]) -> Self:
        """This tower's config, out of its own `config.json` or out of that of a whole model."""
        found = content.get("model_type") or cls.model_type
        if found in cls.wholes:
            return cls.from_dict(_tower_fields(content, cls.part, cls))
        if found not in (cls.model_type, *cls.same):
            wholes = ", ".join(cls.wholes)
            raise ValueError(f"model_type is {found!r}, expected {cls.model_type!r}, or a whole model: {wholes}")
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build from a part of a published `config.json`; keys that describe no shape are left out."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known and value is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as it stands in `config.json`."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}


@dataclass(kw_only=True)
class CLIPTextConfig(TowerConfig):
    """CLIP text tower; the defaults are those of ViT-B/32."""

    model_type: ClassVar[str] = "clip_text_model"
    architecture: ClassVar[str] = "CLIPTextModel"
    part: ClassVar[str] = "text_config"
    wholes: ClassVar[tuple[str, ...]] = ("clip",)

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    attention_dropout: float = 0.0
    pad_token_id: int = 1
    bos_token_id: int = 49406
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_sizes("vocab_size", "max_position_embeddings", "projection_dim")
        self._require_probabilities("attention_dropout")
        # An id that no text can hold would pool every text at its first token without a word.
        if self.eos_token_id != LEGACY_EOS_TOKEN_ID:
            self._require_ids_below("vocab_size", "eos_token_id")

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, special ones included."""
        return self.max_position_embeddings


@dataclass(kw_only=True)
class AltCLIPTextConfig(TowerConfig):
    """XLM-R student and its projection to `project_dim`, the width of the teacher; defaults: XLM-R large."""

    model_type: ClassVar[str] = "altclip_text_model"
    architecture: ClassVar[str] = "AltCLIPTextModel"
    part: ClassVar[str] = "text_config"
    wholes: ClassVar[tuple[str, ...]] = ("altclip",)

    vocab_size: int = 250002
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 514
    hidden_act: str = "gelu"
    initializer_factor: float = 0.02
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    type_vocab_size: int = 1
    project_dim: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_sizes("vocab_size", "max_position_embeddings", "type_vocab_size", "project_dim")
        self._require_probabilities("hidden_dropout_prob", "attention_probs_dropout_prob")
        self._require_ids_below("vocab_size", "pad_token_id")
        if self.max_tokens < 1:
            raise ValueError(
                f"AltCLIPTextConfig: max_position_embeddings={self.max_position_embeddings} leaves no "
                f"position for a token, because positions start at pad_token_id + 1 = {self.pad_token_id + 1}"
            )

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens: positions start one above the padding index."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        kind = content.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise ValueError(f"position_embedding_type is {kind!r}, only 'absolute' is supported")
        return super().from_dict(content)


@dataclass(kw_only=True)
class AltCLIPVisionConfig(TowerConfig):
    """CLIP vision transformer; the defaults are those of ViT-B/32, not those of the published AltCLIP."""

    model_type: ClassVar[str] = "altclip_vision_model"
    architecture: ClassVar[str] = "AltCLIPVisionModel"
    part: ClassVar[str] = "vision_config"
    wholes: ClassVar[tuple[str, ...]] = ("altclip", "clip")
    same: ClassVar[tuple[str, ...]] = ("altclip_vision_model", "clip_vision_model")

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_sizes("num_channels", "image_size", "patch_size", "projection_dim")
        self._require_probabilities("attention_dropout")
        if self.image_size < self.patch_size:
            raise ValueError(
                f"{type(self).__name__}: image_size={self.image_size} is smaller than patch_size={self.patch_size}"
            )

    @property
    def num_positions(self) -> int:
        """P: patches plus the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(kw_only=True)
class CLIPVisionConfig(AltCLIPVisionConfig):
    """The same tower as it is named inside a CLIP's `config.json`."""

    model_type: ClassVar[str] = "clip_vision_model"
    architecture: ClassVar[str] = "CLIPVisionModel"


@dataclass(kw_only=True)
class DualConfig(StoredConfig):
    """Base of the whole-model configs: one text tower, one vision tower, one joint space.

    A tower may be given as a config, as a plain dict, or not at all, which means its defaults.
    """

    text_class: ClassVar[type[TowerConfig]]
    vision_class: ClassVar[type[AltCLIPVisionConfig]]

    vision_config: AltCLIPVisionConfig
    projection_dim: int
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        self._take_tower("text_config", self.text_class, allowed=self.text_class)
        self._take_tower("vision_config", self.vision_class, allowed=AltCLIPVisionConfig)
        self._require_sizes("projection_dim")
        self._require_numbers("logit_scale_init_value", "initializer_factor")

    def _take_tower(self, name: str, kind: type[TowerConfig], *, allowed: type[TowerConfig]) -> None:
        given = getattr(self, name)
        if given is None or isinstance(given, Mapping):
            setattr(self, name, kind.from_dict(given or {}))
        elif not isinstance(given, allowed):
            found = type(given).__name__
            raise ValueError(f"{type(self).__name__}: {name} is a {found}, expected a {kind.__name__} or a dict")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build from a published `config.json`. Raises ValueError for another kind of model."""
        found = content.get("model_type") or cls.model_type
        if found != cls.model_type:
            raise ValueError(f"model_type is {found!r}, expected {cls.model_type!r}")
        towers = {
            "text_config": cls.text_class.from_dict(_tower_fields(content, "text_config", cls.text_class)),
            "vision_config": cls.vision_class.from_dict(_tower_fields(content, "vision_config", cls.vision_class)),
        }
        known = {entry.name for entry in dataclasses.fields(cls)} - towers.keys()
        return cls(**towers, **{key: content[key] for key in known if content.get(key) is not None})

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, as it stands in `config.json`."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        towers = {name: value.to_dict() for name, value in own.items() if isinstance(value, TowerConfig)}
        return {"model_type": self.model_type, **own, **towers}


def _tower_fields(content: Mapping[str, Any], name: str, tower: type[TowerConfig]) -> dict[str, Any]:
    """Fields of one tower. OpenAI's first configs carry a `<name>_dict` that overrules the plain one."""
    plain, overruling = content.get(name) or {}, content.get(f"{name}_dict") or {}
    for part in (plain, overruling):
        if not isinstance(part, Mapping):
            raise ValueError(f"{name} is a {type(part).__name__}, expected the fields of a tower")
    fields = dict(plain)
    if overruling:
        fields.update(tower.from_dict(overruling).to_dict())
    return fields


@dataclass(kw_only=True)
class CLIPConfig(DualConfig):
    """A whole CLIP."""

    model_type: ClassVar[str] = "clip"
    architecture: ClassVar[str] = "CLIPModel"
    text_class: ClassVar[type[TowerConfig]] = CLIPTextConfig
    vision_class: ClassVar[type[AltCLIPVisionConfig]] = CLIPVisionConfig

    text_config: CLIPTextConfig = field(default_factory=CLIPTextConfig)
    vision_config: AltCLIPVisionConfig = field(default_factory=CLIPVisionConfig)
    projection_dim: int = 512


@dataclass(kw_only=True)
class AltCLIPConfig(DualConfig):
    """A whole AltCLIP: XLM-R student beside the vision tower of a CLIP."""

    model_type: ClassVar[str] = "altclip"
    architecture: ClassVar[str] = "AltCLIPModel"
    text_class: ClassVar[type[TowerConfig]] = AltCLIPTextConfig
    vision_class: ClassVar[type[AltCLIPVisionConfig]] = AltCLIPVisionConfig

    text_config: AltCLIPTextConfig = field(default_factory=AltCLIPTextConfig)
    vision_config: AltCLIPVisionConfig = field(default_factory=AltCLIPVisionConfig)
    projection_dim: int = 768

    @classmethod
    def from_text_vision_configs(
        cls, text_config: AltCLIPTextConfig, vision_config: AltCLIPVisionConfig, **fields: Any
    ) -> Self:
        """The documented spelling of the constructor."""
        return cls(text_config=text_config, vision_config=vision_config, **fields)

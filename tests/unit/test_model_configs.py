"""Configurations: their files, towers in them, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextConfig,
    AltCLIPVisionConfig,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from tests.tiny_models import TEXT_FIELDS, VISION_FIELDS, tiny_config


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (
            AltCLIPTextConfig,
            {"num_attention_heads": 5},
            "hidden_size=12 is not a multiple of num_attention_heads=5",
        ),
        (AltCLIPTextConfig, {"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is unknown"),
        (AltCLIPTextConfig, {"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1.5 must lie in \[0, 1\)"),
        (AltCLIPTextConfig, {"vocab_size": 0}, "vocab_size=0 must be an integer of at least 1"),
        (AltCLIPTextConfig, {"layer_norm_eps": "1e-5"}, "layer_norm_eps='1e-5' must be a number"),
        (AltCLIPTextConfig, {"pad_token_id": 37}, "pad_token_id=37 must be an integer in"),
        (AltCLIPTextConfig, {"max_position_embeddings": 2}, "leaves no position"),
        (AltCLIPTextConfig, {"hiden_size": 12}, "has no field 'hiden_size': did you mean hidden_size?"),
        (CLIPTextConfig, {"eos_token_id": 37}, "eos_token_id=37 must be an integer in"),
        (
            AltCLIPVisionConfig,
            {"hidden_size": 8, "patch_size": 300, "num_attention_heads": 2},
            "smaller than patch",
        ),
    ],
)
def test_config_error_names_field_and_value(config: Any, fields: dict[str, Any], message: str) -> None:
    start = {} if config is AltCLIPVisionConfig else TEXT_FIELDS
    with pytest.raises(ValueError, match=message):
        config.from_fields({"eos_token_id": 36, **start, **fields} if start else fields)


def test_config_survives_its_file_and_ignores_foreign_keys(tmp_path: Path) -> None:
    config = AltCLIPConfig(
        text_config=AltCLIPTextConfig(**TEXT_FIELDS), vision_config=AltCLIPVisionConfig(**VISION_FIELDS)
    )
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "altclip"
    assert content["text_config"]["model_type"] == "altclip_text_model"
    content["direct_kd"] = False
    content["text_config"] |= {"torch_dtype": "float32", "transformers_version": "4.30.0", "use_cache": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert AltCLIPConfig.from_pretrained(tmp_path) == config


def test_relative_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="position_embedding_type is 'relative_key'"):
        AltCLIPTextConfig.from_dict({**TEXT_FIELDS, "position_embedding_type": "relative_key"})


def test_openai_configs_with_overruling_dicts_are_read() -> None:
    content = {
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 512, "eos_token_id": 2},
        "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        "vision_config": None,
        "vision_config_dict": {"patch_size": 14},
    }
    config = CLIPConfig.from_dict(content)
    assert config.text_config.hidden_size == 768
    assert config.vision_config == CLIPVisionConfig(patch_size=14)


def test_config_takes_towers_as_objects_dicts_or_not_at_all() -> None:
    text, vision = AltCLIPTextConfig(**TEXT_FIELDS, project_dim=10), AltCLIPVisionConfig(**VISION_FIELDS)
    expected = AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    assert tiny_config() == expected
    assert AltCLIPConfig.from_text_vision_configs(text, vision, projection_dim=6) == expected
    assert AltCLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=6) == expected
    assert AltCLIPConfig.from_dict(json.loads(json.dumps(expected.to_dict()))) == expected
    default = AltCLIPConfig(text_config=None)
    assert default == AltCLIPConfig()
    assert (default.text_config, default.vision_config) == (AltCLIPTextConfig(), AltCLIPVisionConfig())
    assert (default.projection_dim, default.logit_scale_init_value) == (768, 2.6592)
    assert (default.text_config.hidden_size, default.text_config.project_dim) == (1024, 768)
    assert (default.vision_config.patch_size, default.vision_config.num_hidden_layers) == (32, 12)
    with pytest.raises(ValueError, match="text_config is a CLIPTextConfig, expected a AltCLIPTextConfig or a dict"):
        AltCLIPConfig(text_config=CLIPTextConfig())
    with pytest.raises(ValueError, match="text_config is a list, expected the fields of a tower"):
        AltCLIPConfig.from_dict({"text_config": [1]})


def test_tower_configs_are_read_alone_and_out_of_a_whole_model(tmp_path: Path) -> None:
    config = tiny_config()
    config.save_pretrained(tmp_path / "whole")
    for part in (config.text_config, config.vision_config):
        part.save_pretrained(tmp_path / part.model_type)
        for folder in ("whole", part.model_type):
            assert type(part).from_pretrained(tmp_path / folder) == part
    with pytest.raises(ValueError, match=r"config\.json: model_type is 'altclip_text_model', expected 'altclip_vision"):
        AltCLIPVisionConfig.from_pretrained(tmp_path / "altclip_text_model")
    with pytest.raises(ValueError, match="model_type is 'altclip_text_model', expected 'altclip'"):
        AltCLIPConfig.from_pretrained(tmp_path / "altclip_text_model")
    with pytest.raises(ValueError, match="a whole model: clip"):
        CLIPTextConfig.from_pretrained(tmp_path / "whole")


@pytest.mark.parametrize(
    ("tower", "field", "size"),
    [
        ("text_config", "num_hidden_layers", 10**6),
        ("text_config", "hidden_size", 3 * 10**9),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "max_position_embeddings", 10**9),
        ("vision_config", "intermediate_size", 10**9),
        ("vision_config", "image_size", 10**7),
        (None, "projection_dim", 10**9),
    ],
)
def test_absurd_sizes_are_refused_by_name_before_anything_is_built(
    tower: str | None, field: str, size: int, tmp_path: Path
) -> None:
    content = tiny_config().to_dict()
    (content if tower is None else content[tower])[field] = size
    (tmp_path / "config.json").write_text(json.dumps(content))
    for kind in (AltCLIPConfig, AltCLIPModel):
        with pytest.raises(ValueError, match=rf"config\.json: .*{field}={size} is above .*damaged"):
            kind.from_pretrained(tmp_path)

"""Students out of directories, and the hand-off from a CLIP to an AltCLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPVisionConfig,
    assemble_altclip,
    build_text_student,
    load_clip_text,
    load_model,
)
from altclip_train.types import PackedTokens
from tests.tiny_models import (
    CLIP_TEXTS,
    STUDENT_TEXTS,
    TEXT_FIELDS,
    VISION_FIELDS,
    tiny_altclip,
    tiny_clip,
    tiny_student,
)
from tests.weight_spellings import (
    OPEN_CLIP_CONFIG,
    legacy_clip,
    openai_names,
    saved,
    text_module,
    write_json,
    write_shards,
)


def test_assembled_model_keeps_clip_and_student_bit_equal(tmp_path: Path) -> None:
    clip, student = tiny_clip(), tiny_student(project_dim=10)
    clip.save_pretrained(tmp_path)
    tokens = PackedTokens.from_lists(STUDENT_TEXTS)
    before = student.encode_packed(tokens)
    model = assemble_altclip(tmp_path, student)
    assert model.text_model is student
    assert torch.equal(model.text_model.encode_packed(tokens), before)
    assert torch.equal(model.logit_scale, clip.logit_scale)
    for name in ("vision_model", "visual_projection", "text_projection"):
        ours, theirs = model.get_submodule(name).state_dict(), clip.get_submodule(name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert not any(parameter.is_meta for parameter in model.parameters())
    model.save_pretrained(tmp_path / "altclip")
    loaded = load_model(tmp_path / "altclip")
    assert torch.equal(loaded.encode_text(tokens), model.encode_text(tokens))


def test_assembling_with_another_width_names_both_and_the_key(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"10 wide, but the student projects to 11.*project_dim=10"):
        assemble_altclip(tmp_path, tiny_student(project_dim=11))


def test_clip_text_tower_is_loaded_alone(tmp_path: Path) -> None:
    clip = tiny_clip().eval()
    clip.save_pretrained(tmp_path)
    teacher = load_clip_text(tmp_path)
    tokens = PackedTokens.from_lists(CLIP_TEXTS)
    assert torch.equal(teacher.encode_packed(tokens), clip.text_model.encode_packed(tokens))
    assert not teacher.training


def test_student_takes_the_text_tower_of_an_altclip(tmp_path: Path) -> None:
    clip, student = tiny_clip(), tiny_student(project_dim=10)
    clip.save_pretrained(tmp_path / "clip")
    assemble_altclip(tmp_path / "clip", student).save_pretrained(tmp_path / "altclip")
    again = build_text_student(student=tmp_path / "altclip", project_dim=10, hidden_dropout_prob=0.25)
    assert again.config.hidden_dropout_prob == 0.25
    assert again.training
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="projects to 10, the teacher's width is 11"):
        build_text_student(student=tmp_path / "altclip", project_dim=11)


def test_student_takes_an_xlmr_and_gets_a_fresh_head(tmp_path: Path) -> None:
    source = tiny_student()
    source.config.hidden_dropout_prob = 0.1
    config = {**source.config.to_dict(), "model_type": "xlm-roberta"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vision = AltCLIPVisionConfig(**VISION_FIELDS)
    whole = AltCLIPModel(AltCLIPConfig(text_config=source.config, vision_config=vision), text_model=source)
    whole.save_pretrained(tmp_path / "whole")
    prefix = "text_model.roberta."
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    encoder = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    encoder["pooler.dense.weight"] = torch.zeros(12, 12)
    save_file(encoder, tmp_path / "model.safetensors")
    student = build_text_student(student=tmp_path, project_dim=13)
    assert student.config.hidden_dropout_prob == 0.0
    for name, tensor in source.state_dict().items():
        if not name.startswith(("pre_LN", "transformation")):
            assert torch.equal(student.state_dict()[name], tensor), name
    assert student.transformation.weight.shape == (13, 12)
    assert 0.01 < student.transformation.weight.std() < 0.03
    assert torch.equal(student.pre_LN.weight, torch.ones(12))


def test_random_students_have_no_dropout_unless_asked() -> None:
    assert tiny_student().config.hidden_dropout_prob == 0.0
    asked = build_text_student(student=None, project_dim=5, hidden_dropout_prob=0.5, **TEXT_FIELDS)
    tokens = PackedTokens.from_lists(STUDENT_TEXTS)
    assert not torch.equal(asked.encode_packed(tokens), asked.encode_packed(tokens))
    asked.eval()
    assert torch.equal(asked.encode_packed(tokens), asked.encode_packed(tokens))


def test_students_and_handoff_read_the_other_layouts_too(tmp_path: Path) -> None:
    altclip, clip = tiny_altclip(), legacy_clip()
    tensors = saved(altclip, tmp_path / "altclip")
    tensors = {name.replace("roberta.encoder.layer.", "roberta.encoder.layers."): tensors[name] for name in tensors}
    write_shards(tensors, tmp_path / "altclip", "pytorch_model.bin.index.json", torch.save)
    student = build_text_student(student=tmp_path / "altclip", project_dim=10)
    for name, tensor in altclip.text_model.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name

    names = openai_names(saved(clip, tmp_path / "clip"))
    (tmp_path / "clip" / "config.json").unlink()
    write_json(tmp_path / "clip" / "open_clip_config.json", OPEN_CLIP_CONFIG)
    torch.save(text_module(names), tmp_path / "clip" / "open_clip_pytorch_model.bin")
    teacher, tokens = load_clip_text(tmp_path / "clip"), PackedTokens.from_lists(CLIP_TEXTS)
    assert torch.equal(teacher.encode_packed(tokens), clip.text_model.encode_packed(tokens))
    whole = assemble_altclip(tmp_path / "clip", student)
    assert whole.text_model is student
    assert torch.equal(whole.logit_scale, clip.logit_scale)
    for part in ("vision_model", "visual_projection", "text_projection"):
        for name, tensor in clip.get_submodule(part).state_dict().items():
            assert torch.equal(whole.get_submodule(part).state_dict()[name], tensor), (part, name)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_xlmr_student_is_read_with_and_without_its_prefix(prefix: str, tmp_path: Path) -> None:
    source = tiny_altclip()
    tensors = saved(source, tmp_path)
    write_json(tmp_path / "config.json", {**source.config.text_config.to_dict(), "model_type": "xlm-roberta"})
    inner = "text_model.roberta."
    encoder = {prefix + name.removeprefix(inner): t for name, t in tensors.items() if name.startswith(inner)}
    head = {"lm_head.bias": torch.zeros(37), "lm_head.dense.weight": torch.zeros(12, 12)} if prefix else {}
    torch.save({**encoder, **head, f"{prefix}pooler.dense.bias": torch.zeros(12)}, tmp_path / "pytorch_model.bin")
    student = build_text_student(student=tmp_path, project_dim=7)
    assert student.transformation.weight.shape == (7, 12)
    for name, tensor in source.text_model.state_dict().items():
        if not name.startswith(("pre_LN", "transformation")):
            assert torch.equal(student.state_dict()[name], tensor), name

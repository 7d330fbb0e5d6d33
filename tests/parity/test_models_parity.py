"""Our towers against transformers on tiny random models with every parameter moved off its initial value.

`PYTHONPATH=. python tests/parity/test_models_parity.py` rewrites tests/unit/goldens/models.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from altclip_train.models import (
    AltCLIPModel,
    CLIPModel,
    assemble_altclip,
    build_text_student,
    load_clip_text,
    load_model,
)
from altclip_train.types import PackedTokens
from tests.golden_models import GOLDEN, formula_tensor
from tests.parity.references import (
    CLIP_TEXTS,
    EOS_RULES,
    STUDENT_TEXTS,
    XLMR,
    padded,
    perturb,
    pictures,
    reference_altclip,
    reference_clip,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Also fails for features so small that the tolerance would hide an error."""
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("eos_token_id", EOS_RULES)
@torch.no_grad()
def test_clip_text_pooled_state_equals_transformers(eos_token_id: int, tmp_path: Path) -> None:
    reference = reference_clip(eos_token_id)
    reference.save_pretrained(tmp_path)
    expected = reference.text_model(**padded(CLIP_TEXTS, filler=58)).pooler_output
    assert_near(load_clip_text(tmp_path).encode_packed(PackedTokens.from_lists(CLIP_TEXTS)), expected)


@torch.no_grad()
def test_vision_pooled_state_equals_transformers(tmp_path: Path) -> None:
    reference = reference_clip(40)
    reference.save_pretrained(tmp_path)
    expected = reference.vision_model(pictures()).pooler_output
    assert_near(load_model(tmp_path).vision_model.encode(pictures()), expected)


@torch.no_grad()
def test_student_pooled_state_equals_transformers(tmp_path: Path) -> None:
    reference = reference_altclip()
    reference.save_pretrained(tmp_path)
    expected = reference.text_model(**padded(STUDENT_TEXTS, filler=1)).pooler_output
    student = build_text_student(student=tmp_path, project_dim=20)
    assert_near(student.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS)), expected)


@pytest.mark.parametrize("kind", ["XLMRobertaModel", "XLMRobertaForMaskedLM"])
@torch.no_grad()
def test_xlmr_encoder_equals_transformers(kind: str, tmp_path: Path) -> None:
    reference = getattr(transformers, kind)(transformers.XLMRobertaConfig(**XLMR)).eval()
    perturb(reference, seed=4)
    reference.save_pretrained(tmp_path)
    encoder = getattr(reference, "roberta", reference)
    state = encoder(**padded(STUDENT_TEXTS, filler=1)).last_hidden_state[:, 0]
    student = build_text_student(student=tmp_path, project_dim=20)
    perturb(student.pre_LN, seed=5)
    perturb(student.transformation, seed=6)
    expected = student.transformation(student.pre_LN(state))
    assert_near(student.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS)), expected)


@torch.no_grad()
def test_altclip_logits_and_features_equal_transformers(tmp_path: Path) -> None:
    reference = reference_altclip()
    reference.save_pretrained(tmp_path)
    texts = padded(STUDENT_TEXTS[:4], filler=1)
    expected = reference(**texts, pixel_values=pictures(), return_loss=True)
    model = load_model(tmp_path)
    found = model(**texts, pixel_values=pictures(), return_loss=True)
    assert_near(found.logits_per_image, expected.logits_per_image)
    assert_near(found.logits_per_text, expected.logits_per_text)
    assert_near(found.text_embeds, expected.text_embeds)
    assert_near(found.image_embeds, expected.image_embeds)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=TOLERANCE)
    assert_near(model.get_text_features(**texts), reference.get_text_features(**texts).pooler_output)
    assert_near(model.get_image_features(pictures()), reference.get_image_features(pictures()).pooler_output)


@torch.no_grad()
def test_features_without_a_mask_equal_transformers(tmp_path: Path) -> None:
    reference = reference_altclip()
    reference.save_pretrained(tmp_path)
    ids = padded(STUDENT_TEXTS, filler=1)["input_ids"]
    assert_near(load_model(tmp_path).get_text_features(ids), reference.get_text_features(ids).pooler_output)


def test_student_gradients_equal_transformers(tmp_path: Path) -> None:
    reference = reference_altclip()
    reference.save_pretrained(tmp_path)
    student = build_text_student(student=tmp_path, project_dim=20)
    target = torch.randn(len(STUDENT_TEXTS), 20, generator=torch.Generator().manual_seed(7))
    found = student.encode_packed(PackedTokens.from_lists(STUDENT_TEXTS))
    torch.nn.functional.mse_loss(found, target).backward()
    expected = reference.text_model(**padded(STUDENT_TEXTS, filler=1)).pooler_output
    torch.nn.functional.mse_loss(expected, target).backward()
    roberta = reference.text_model.roberta
    first = roberta.encoder.layers[0]
    fused = torch.cat([getattr(first.attention.self, name).weight.grad for name in ("query", "key", "value")])
    embeddings, block = student.embeddings, student.layers[0]
    for ours, theirs in (
        (embeddings.word_embeddings.weight.grad, roberta.embeddings.word_embeddings.weight.grad),
        (embeddings.position_embeddings.weight.grad, roberta.embeddings.position_embeddings.weight.grad),
        (block.attention.qkv.weight.grad, fused),
        (block.mlp.fc1.bias.grad, first.intermediate.dense.bias.grad),
        (student.pre_LN.weight.grad, reference.text_model.pre_LN.weight.grad),
        (student.transformation.weight.grad, reference.text_model.transformation.weight.grad),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=TOLERANCE)


@torch.no_grad()
def test_our_altclip_directory_loads_in_transformers(tmp_path: Path) -> None:
    reference_clip(2).save_pretrained(tmp_path / "clip")
    fields = {key: value for key, value in XLMR.items() if not key.endswith("dropout_prob")}
    student = build_text_student(student=None, project_dim=28, **fields)
    perturb(student, seed=8)
    model = assemble_altclip(tmp_path / "clip", student).eval()
    model.save_pretrained(tmp_path / "ours")
    loaded, report = transformers.AltCLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    texts = padded(STUDENT_TEXTS[:4], filler=1)
    expected = loaded.eval()(**texts, pixel_values=pictures())
    found = model(**texts, pixel_values=pictures())
    assert_near(found.logits_per_image, expected.logits_per_image)


@pytest.mark.parametrize("eos_token_id", EOS_RULES)
@torch.no_grad()
def test_our_clip_directory_loads_in_transformers(eos_token_id: int, tmp_path: Path) -> None:
    reference_clip(eos_token_id).save_pretrained(tmp_path / "reference")
    model = CLIPModel.from_pretrained(tmp_path / "reference")
    model.save_pretrained(tmp_path / "ours")
    loaded, report = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    texts = padded(CLIP_TEXTS[:4], filler=58)
    expected = loaded.eval()(**texts, pixel_values=pictures())
    found = model(**texts, pixel_values=pictures())
    assert_near(found.logits_per_image, expected.logits_per_image)


@torch.no_grad()
def test_published_and_native_spellings_both_load(tmp_path: Path) -> None:
    """transformers 5 writes `encoder.layer` in both towers; we write the published names."""
    reference_altclip().save_pretrained(tmp_path / "native")
    model = AltCLIPModel.from_pretrained(tmp_path / "native")
    model.save_pretrained(tmp_path / "published")
    again = AltCLIPModel.from_pretrained(tmp_path / "published")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@torch.no_grad()
def golden_case(reference: Any, texts: list[list[int]], filler: int, published: dict[str, str]) -> dict[str, Any]:
    """Shapes, inputs and outputs of a transformers model filled by the formula; `published` respells."""
    shapes = {}
    for name, parameter in reference.named_parameters():
        for ours, theirs in published.items():
            name = name.replace(ours, theirs)
        shapes[name] = list(parameter.shape)
        parameter.copy_(formula_tensor(name, shapes[name]))
    inputs = padded(texts, filler)
    pixel_shape = [3, 3, 18, 18]
    pixels = formula_tensor("pixel_values", pixel_shape)
    config = reference.config.to_dict()
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    kept += ("max_position_embeddings", "project_dim", "eos_token_id", "image_size", "patch_size")
    towers = {
        tower: {key: value for key, value in config[tower].items() if key in kept}
        for tower in ("text_config", "vision_config")
    }
    return {
        "config": {"model_type": config["model_type"], "projection_dim": config["projection_dim"], **towers},
        "shapes": shapes,
        "pixel_shape": pixel_shape,
        **{name: value.tolist() for name, value in inputs.items()},
        "text": reference.get_text_features(**inputs).pooler_output.tolist(),
        "image": reference.get_image_features(pixels).pooler_output.tolist(),
        "logits_per_image": reference(**inputs, pixel_values=pixels).logits_per_image.tolist(),
    }


def some(states: Tensor) -> list[Any]:
    """The first three channels, rounded: enough to notice any slip."""
    return [[[round(value, 6) for value in row] for row in states_of] for states_of in states[..., :3].tolist()]


@torch.no_grad()
def golden_forward() -> dict[str, Any]:
    """Padded form of a transformers AltCLIP filled by the formula: left padding, a hole, a picture of another shape."""
    reference = reference_altclip()
    for name, parameter in reference.named_parameters():
        published = name.replace("roberta.encoder.layers.", "roberta.encoder.layer.")
        parameter.copy_(formula_tensor(published, list(parameter.shape)))
    reference.set_attn_implementation("eager")
    mask = [[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    ids = [[1, 1, 0, 7, 9, 2], [0, 50, 51, 52, 53, 2], [1, 1, 1, 1, 1, 0]]
    pixels = formula_tensor("pixel_values", [3, 3, 24, 31])
    asked = {"output_hidden_states": True, "output_attentions": True, "interpolate_pos_encoding": True}
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    output = reference(**inputs, pixel_values=pixels, return_loss=True, **asked)
    towers = {}
    for name in ("text_model_output", "vision_model_output"):
        tower = output[name]
        towers[name] = {
            "last_hidden_state": some(tower.last_hidden_state),
            "hidden_states": [some(states) for states in tower.hidden_states],
            "attentions": [some(weights[:, -1]) for weights in tower.attentions],  # of the last head
        }
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_shape": list(pixels.shape),
        "loss": output.loss.item(),
        "logits_per_text": output.logits_per_text.tolist(),
        **towers,
    }


def make_goldens() -> dict[str, Any]:
    student_names = {"roberta.encoder.layers.": "roberta.encoder.layer."}
    return {
        "note": "transformers' numbers for weights given by formula_tensor in tests/golden_models.py; "
        "rewritten by: PYTHONPATH=. python tests/parity/test_models_parity.py",
        "cases": {
            "altclip": golden_case(reference_altclip(), STUDENT_TEXTS, 1, student_names),
            "clip_first_eos": golden_case(reference_clip(40), CLIP_TEXTS, 58, {}),
            "clip_legacy_eos": golden_case(reference_clip(2), CLIP_TEXTS, 58, {}),
        },
        "forward": golden_forward(),
    }


def assert_near_lists(stored: Any, fresh: Any, where: str) -> None:
    if isinstance(fresh, dict):
        assert stored.keys() == fresh.keys(), where
        for name in fresh:
            assert_near_lists(stored[name], fresh[name], f"{where}.{name}")
    elif isinstance(fresh, list):
        assert len(stored) == len(fresh), where
        for ours, theirs in zip(stored, fresh, strict=True):
            assert_near_lists(ours, theirs, where)
    else:
        assert stored == pytest.approx(fresh, rel=0, abs=1e-5), where


def test_stored_golden_is_what_transformers_gives() -> None:
    whole, made = json.loads(GOLDEN.read_text()), make_goldens()
    assert_near_lists(whole["forward"], made["forward"], "forward")
    stored, fresh = whole["cases"], made["cases"]
    assert stored.keys() == fresh.keys()
    for case, golden in fresh.items():
        for name, value in golden.items():
            if name in ("text", "image", "logits_per_image"):
                torch.testing.assert_close(torch.tensor(stored[case][name]), torch.tensor(value), rtol=0, atol=1e-5)
            else:
                assert stored[case][name] == value, (case, name)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_goldens(), separators=(",", ":")) + "\n")

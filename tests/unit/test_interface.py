"""The documented interface without transformers: outputs, masks, features, errors, the example."""

from __future__ import annotations

import copy
import gc
import io
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from altclip_train.models import AltCLIPModel, AltCLIPTextModel, pack_padded
from tests.documented_example import make_directory, run_example
from tests.golden_models import GOLDEN, formula_tensor
from tests.tiny_models import padded, tiny_altclip

TEXTS = [[0, 7, 9, 2], [0, 30, 31, 32, 33, 34, 2], [0], [0, 8, 9, 2]]


@pytest.fixture
def model() -> AltCLIPModel:
    return tiny_altclip()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_padded_form_equals_the_stored_golden(tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text())
    case, golden = stored["cases"]["altclip"], stored["forward"]
    (tmp_path / "config.json").write_text(json.dumps(case["config"]))
    tensors = {name: formula_tensor(name, shape) for name, shape in case["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    output = AltCLIPModel.from_pretrained(tmp_path)(
        torch.tensor(golden["input_ids"]),
        formula_tensor("pixel_values", golden["pixel_shape"]),
        torch.tensor(golden["attention_mask"]),
        return_loss=True,
        interpolate_pos_encoding=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    for name in ("loss", "logits_per_text"):
        torch.testing.assert_close(output[name], torch.tensor(golden[name]), rtol=0, atol=2e-5, msg=name)
    for name in ("text_model_output", "vision_model_output"):
        tower = output[name]
        found = {
            "last_hidden_state": tower.last_hidden_state[..., :3],
            "hidden_states": torch.stack(tower.hidden_states)[..., :3],
            "attentions": torch.stack([weights[:, -1, :, :3] for weights in tower.attentions]),
        }
        for field, value in found.items():
            expected = torch.tensor(golden[name][field])
            torch.testing.assert_close(value, expected, rtol=0, atol=2e-5, msg=lambda text, of=field: f"{of}: {text}")


def test_padded_and_packed_forms_agree_with_gradients(model: AltCLIPModel, pixels: Tensor) -> None:
    packed, whole = model.double(), copy.deepcopy(model).double()
    ids, mask = padded(TEXTS, filler=1)
    found = whole(ids, pixels.double(), mask, return_loss=True)
    texts, images = packed.encode_text(pack_padded(ids, mask)), packed.encode_image(pixels.double())
    texts, images = (features / features.norm(dim=1, keepdim=True) for features in (texts, images))
    logits = packed.logit_scale.exp() * texts @ images.T
    loss = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(found.loss, loss, rtol=0, atol=1e-12)
    loss.backward()
    found.loss.backward()
    for (name, ours), theirs in zip(whole.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10, msg=name)


@torch.no_grad()
def test_masks_hide_tokens_whatever_they_are_and_wherever_they_stand(model: AltCLIPModel) -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]])
    positions = torch.tensor([[2, 9, 3, 4, 9], [9, 9, 2, 3, 4]])
    first, second = torch.randint(3, 37, (2, 2, 5), generator=torch.Generator().manual_seed(1))
    second = torch.where(mask.bool(), first, second)
    states = [model.text_model(ids, mask, position_ids=positions).last_hidden_state for ids in (first, second)]
    torch.testing.assert_close(states[0][mask.bool()], states[1][mask.bool()], rtol=0, atol=1e-5)
    short = torch.stack([row[kept.bool()] for row, kept in zip(first, mask, strict=True)])  # (2, 3), nothing hidden
    alone = model.text_model(short).last_hidden_state
    torch.testing.assert_close(states[0][mask.bool()], alone.flatten(0, 1), rtol=0, atol=1e-5)


def test_padding_without_a_mask_has_the_padding_position_and_its_vectors_learn_nothing(model: AltCLIPModel) -> None:
    ids, _ = padded(TEXTS, filler=1)
    output = model.text_model(ids)
    packed = model.text_model.encode_packed(pack_padded(ids))
    torch.testing.assert_close(output.pooler_output, packed, rtol=0, atol=1e-5)
    output.last_hidden_state.square().sum().backward()
    for table in (model.text_model.embeddings.word_embeddings, model.text_model.embeddings.position_embeddings):
        assert table.weight.grad is not None
        assert table.weight.grad[1].abs().max() == 0
        assert table.weight.grad[2].abs().max() > 0


@torch.no_grad()
def test_asking_for_more_changes_no_number(model: AltCLIPModel, pixels: Tensor) -> None:
    ids, mask = padded(TEXTS, filler=1)
    plain = model(ids, pixels, mask)
    asked = model(ids, pixels, mask, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(asked.logits_per_image, plain.logits_per_image, rtol=1e-5, atol=1e-5)
    for tower, blocks, length, heads in ((asked.text_model_output, 3, 7, 3), (asked.vision_model_output, 2, 5, 2)):
        assert [states.shape[1] for states in tower.hidden_states] == [length] * (blocks + 1)
        assert [weights.shape for weights in tower.attentions] == [(4, heads, length, length)] * blocks
        for weights in tower.attentions:
            torch.testing.assert_close(weights.sum(-1), torch.ones(4, heads, length))
    assert all((weights[0, :, :, 4:] == 0).all() for weights in asked.text_model_output.attentions)


@torch.no_grad()
def test_outputs_work_by_name_by_key_by_index_and_as_tuples(model: AltCLIPModel, pixels: Tensor) -> None:
    ids, mask = padded(TEXTS, filler=1)
    output = model(ids, pixels, mask)
    names = ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    assert list(output) == list(output.keys()) == [*names, "text_model_output", "vision_model_output"]
    assert len(output) == 6
    assert output.loss is None
    assert "loss" not in output
    assert output.get("loss", 5) == 5
    for place, name in enumerate(names):
        assert output[place] is output[name] is getattr(output, name) is dict(output)[name] is output.to_tuple()[place]
    assert isinstance(output[4], tuple)
    assert len(output[:2]) == 2
    with pytest.raises(KeyError, match="this AltCLIPOutput has logits_per_image"):
        output["loss"]
    with_loss = model(ids, pixels, mask, return_loss=True, return_dict=False)
    assert len(with_loss) == 7
    assert with_loss[0].shape == ()
    assert torch.equal(with_loss[1], output[0])
    assert [len(tower) for tower in with_loss[5:]] == [2, 2]
    assert len(model.text_model(ids, mask, output_attentions=True, return_dict=False)) == 3


@torch.no_grad()
def test_features_are_tensors_that_carry_themselves(model: AltCLIPModel, pixels: Tensor) -> None:
    ids, mask = padded(TEXTS, filler=1)
    texts, images = model.get_text_features(ids, mask), model.get_image_features(pixels)
    for features in (texts, images):
        assert type(features) is Tensor
        assert features.shape == (4, 6)
        assert torch.equal(features.pooler_output, features)
        features /= features.norm(dim=-1, keepdim=True)  # the usual next line, in place
        assert torch.equal(features.pooler_output, features)
        saved = io.BytesIO()
        torch.save(features, saved)
        saved.seek(0)
        assert torch.equal(torch.load(saved, weights_only=True), features)
        assert torch.equal(copy.deepcopy(features)[1:].cpu(), features[1:])
    output = model(ids, pixels, mask)
    torch.testing.assert_close(texts, output.text_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(images, output.image_embeds, rtol=0, atol=1e-5)


def test_features_are_freed_without_the_garbage_collector(model: AltCLIPModel, pixels: Tensor) -> None:
    gc.disable()
    try:
        features = model.get_image_features(pixels)
        held = weakref.ref(features), weakref.ref(features.pooler_output)
        del features
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()


@torch.no_grad()
def test_features_are_packed_only_for_plain_right_padding(
    model: AltCLIPModel, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = padded(TEXTS, filler=1)
    packed = model.encode_text(pack_padded(ids, mask))
    assert torch.equal(model.get_text_features(ids, mask), packed)
    assert torch.equal(model.get_text_features(ids, mask.bool(), return_dict=True), packed)
    positions = model.text_model.embeddings.padded_positions(ids)
    monkeypatch.setattr(AltCLIPTextModel, "encode_packed", lambda *_: pytest.fail("packed"))
    for given in ({"position_ids": positions}, {"token_type_ids": torch.zeros_like(ids)}):
        torch.testing.assert_close(model.get_text_features(ids, mask, **given), packed, rtol=0, atol=1e-5)
    left = model.get_text_features(ids.flip(1), mask.flip(1))
    alone = [model.text_model(torch.tensor([text[::-1]])).pooler_output for text in TEXTS]
    expected = model.text_model(ids.flip(1), mask.flip(1)).pooler_output
    torch.testing.assert_close(left, model.text_projection(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(expected[1:2], alone[1], rtol=0, atol=1e-5)  # the longest text has no padding
    mask[2] = 0  # a row without any token
    expected = model.text_projection(model.text_model(ids, mask).pooler_output)
    torch.testing.assert_close(model.get_text_features(ids, mask), expected, rtol=0, atol=1e-5)
    wide = model.get_image_features(torch.cat([pixels, pixels], dim=3), interpolate_pos_encoding=True)
    tower = model.vision_model(torch.cat([pixels, pixels], dim=3), interpolate_pos_encoding=True)
    torch.testing.assert_close(wide, model.visual_projection(tower.pooler_output), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_masks_do_not_overflow_in_half_precision(model: AltCLIPModel, pixels: Tensor, dtype: torch.dtype) -> None:
    ids, mask = padded(TEXTS, filler=1)
    exact = model.text_model(ids, mask).last_hidden_state
    half = copy.deepcopy(model).to(dtype)
    for ask in (False, True):
        found = half(ids, pixels, mask, output_attentions=ask).text_model_output.last_hidden_state
        assert found.dtype == dtype
        assert (found.float() - exact).norm() < 0.03 * exact.norm()
        mask_without_any = mask * torch.tensor([1, 1, 0, 1])[:, None]
        assert half.text_model(ids, mask_without_any, output_attentions=ask).last_hidden_state.isfinite().all()
        assert half.vision_model(pixels[:, :, :5], True, output_attentions=ask).pooler_output.isfinite().all()


@torch.no_grad()
def test_towers_export_with_free_batch_and_length(model: AltCLIPModel, pixels: Tensor) -> None:
    ids, mask = padded(TEXTS, filler=1)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    free = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    text = torch.export.export(model.text_model, (ids, mask), dynamic_shapes=free).module()
    vision = torch.export.export(model.vision_model, (pixels,), dynamic_shapes={"pixel_values": {0: batch}}).module()
    for rows, columns in ((1, 1), (2, 12)):
        ids = torch.randint(3, 37, (rows, columns))
        mask = torch.ones_like(ids)
        mask[-1, : columns // 2] = 0
        expected = model.text_model(ids, mask).last_hidden_state
        torch.testing.assert_close(text(ids, mask).last_hidden_state, expected, rtol=0, atol=1e-5)
        expected = model.vision_model(pixels[:rows]).pooler_output
        torch.testing.assert_close(vision(pixels[:rows]).pooler_output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_of_another_grid_are_the_rows_of_a_bicubic_enlargement(model: AltCLIPModel) -> None:
    embeddings = model.vision_model.embeddings
    table = embeddings.position_embedding.weight
    assert embeddings(torch.zeros(1, 3, 9, 9)).shape == (1, 5, 8)
    grid = embeddings(torch.zeros(1, 3, 17, 8))[0] - torch.cat([embeddings.class_embedding[None], torch.zeros(8, 8)])
    torch.testing.assert_close(grid[0], table[0])
    # Columns stay as they are. By rows 2 -> 4: places -1/4, 1/4, 3/4, 5/4 of the kernel with A = -3/4.
    near = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]  # weights of rows -1, 0, 1, 2 for 1/4
    top, bottom = table[1:3], table[3:5]
    second = (near[0] + near[1]) * top + (near[2] + near[3]) * bottom
    first = (near[3] + near[2] + near[1]) * top + near[0] * bottom
    torch.testing.assert_close(grid[1:5], torch.cat([first, second]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, ids, _: model(ids), "pixel_values are missing"),
        (lambda model, _, pixels: model(None, pixels), "give either input_ids or inputs_embeds"),
        (
            lambda model, ids, pixels: model(ids, pixels[:, :, :8]),
            r"\(4, 3, 8, 9\), expected \(B, 3, 9, 9\): .*interpol",
        ),
        (lambda model, _, pixels: model.get_image_features(pixels[:, :, :8]), "pass interpolate_pos_encoding=True"),
        (lambda model, _, pixels: model.vision_model(pixels[:, :, :3], True), "both at least 4"),
        (lambda model, _, pixels: model.vision_model(pixels[0], True), r"expected \(B, 3, height, width\)"),
        (lambda model, ids, _: model.text_model(ids + 30), "found 64, a token id outside .* vocabulary of 37"),
        (lambda model, ids, _: model.get_text_features(ids + 30), "found 64, a token id outside .* vocabulary of 37"),
        (lambda model, ids, _: model.text_model(ids - 9), "found -9, a token id outside"),
        (lambda model, *_: model.text_model(torch.full((1, 13), 5)), "this tower takes 12 tokens: lower max_length"),
        (lambda model, *_: model.get_text_features(torch.full((1, 13), 5)), "13 tokens, this tower takes 12"),
        (lambda model, *_: model.text_model(inputs_embeds=torch.zeros(1, 13, 12)), "this tower takes 12 tokens"),
        (lambda model, ids, _: model.text_model(ids, position_ids=ids * 0 + 14), "found 14, a position"),
        (
            lambda model, ids, _: model.text_model(ids, torch.ones(4, 6)),
            r"attention_mask is \(4, 6\), expected \(4, 7\)",
        ),
        (lambda model, ids, _: model.get_text_features(ids, torch.ones(4, 6)), r"\(4, 6\), expected \(4, 7\)"),
        (lambda model, ids, _: model.text_model(ids, inputs_embeds=torch.zeros(4, 7, 12)), "not both"),
        (lambda model, ids, pixels: model(ids[:3], pixels, return_loss=True), "found 3 texts and 4 pictures"),
        (lambda model, *_: model.text_model.resize_token_embeddings(1), "leaves no row for pad_token_id=1"),
    ],
)
def test_error_says_what_was_found_and_what_to_do(model: AltCLIPModel, pixels: Tensor, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model, padded(TEXTS, filler=1)[0], pixels)


def test_padding_beyond_the_positions_is_no_error(model: AltCLIPModel) -> None:
    ids = torch.tensor([[0, 5, 2] + [1] * 20])
    long = model.text_model(ids, (ids != 1).long()).pooler_output
    torch.testing.assert_close(long, model.text_model(ids[:, :3]).pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [37, 50, 20])
def test_resized_vocabulary_keeps_its_rows_and_survives_its_files(
    model: AltCLIPModel, size: int, tmp_path: Path
) -> None:
    before = model.text_model.get_input_embeddings().weight.detach().clone()
    ids = torch.tensor([[0, 9, size - 1, 2, 1]])
    table = model.text_model.resize_token_embeddings(size)
    assert table is model.text_model.get_input_embeddings()
    assert model.config.text_config.vocab_size == table.num_embeddings == size
    kept = min(size, 37)
    assert torch.equal(table.weight[:kept], before[:kept])
    torch.testing.assert_close(table.weight[kept:], before.mean(0).expand(size - kept, -1))
    model.save_pretrained(tmp_path)
    again = AltCLIPModel.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again.get_text_features(ids), model.get_text_features(ids))
    model.text_model(ids).last_hidden_state.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[size - 1].abs().max() > 0
    assert table.weight.grad[1].abs().max() == 0  # padding stays where it is


def test_another_vocabulary_has_no_known_tokenizer_and_the_same_one_keeps_it(
    model: AltCLIPModel, tmp_path: Path
) -> None:
    model.tokenizer_sha256 = "ab" * 32
    model.text_model.resize_token_embeddings(37)
    assert model.tokenizer_sha256 == model.text_model.tokenizer_sha256 == "ab" * 32
    model.text_model.resize_token_embeddings(38)  # for a tokenizer with a new token
    assert model.tokenizer_sha256 is None
    model.save_pretrained(tmp_path)
    assert AltCLIPModel.from_pretrained(tmp_path).tokenizer_sha256 is None
    model.tokenizer_sha256 = "cd" * 32
    model.text_model.set_input_embeddings(torch.nn.Embedding(38, 12, padding_idx=1))
    assert model.tokenizer_sha256 is None


def test_documented_example_runs_with_only_the_import_changed(tmp_path: Path) -> None:
    picture = make_directory(tmp_path / "tiny")
    probabilities = run_example("altclip_train", tmp_path / "tiny", picture)
    assert probabilities.shape == (1, 2)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    assert (probabilities[0, 0] - probabilities[0, 1]).abs() > 0.01

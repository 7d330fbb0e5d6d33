"""Whole models: features, scores and the loss; the stored golden of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from altclip_train.models import load_model, pack_padded
from altclip_train.types import PackedTokens
from tests.golden_models import GOLDEN, formula_tensor
from tests.tiny_models import CLIP_TEXTS, STUDENT_TEXTS, padded, tiny_altclip, tiny_clip


def test_padded_interface_equals_packed_one() -> None:
    clip = tiny_clip().eval()
    model = tiny_altclip()
    for either, texts, filler in ((model, STUDENT_TEXTS, 1), (clip, CLIP_TEXTS, 36)):
        ids, mask = padded(texts, filler)
        packed = either.encode_text(PackedTokens.from_lists(texts))
        torch.testing.assert_close(either.get_text_features(ids, mask), packed, rtol=0, atol=0)


def test_left_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="pad texts on the right"):
        pack_padded(torch.ones(2, 3).long(), torch.tensor([[1, 1, 1], [0, 1, 1]]))


def test_forward_gives_scaled_cosines_and_the_symmetric_loss() -> None:
    model = tiny_clip()
    ids, mask = padded(CLIP_TEXTS[:3], filler=0)
    pixels = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    output = model(ids, pixels, mask, return_loss=True)
    texts, images = model.get_text_features(ids, mask), model.get_image_features(pixels)
    cosine = torch.stack([torch.stack([torch.cosine_similarity(t, i, dim=0) for i in images]) for t in texts])
    logits = cosine * model.logit_scale.exp()
    torch.testing.assert_close(output.logits_per_text, logits)
    torch.testing.assert_close(output.logits_per_image, logits.T)
    diagonal = -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2
    torch.testing.assert_close(output.loss, diagonal)


@pytest.mark.parametrize("case", ["altclip", "clip_first_eos", "clip_legacy_eos"])
def test_features_equal_the_stored_golden(case: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())["cases"][case]
    (tmp_path / "config.json").write_text(json.dumps(golden["config"]))
    tensors = {name: formula_tensor(name, shape) for name, shape in golden["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    pixels = formula_tensor("pixel_values", golden["pixel_shape"])
    with torch.no_grad():
        output = model(torch.tensor(golden["input_ids"]), pixels, torch.tensor(golden["attention_mask"]))
        text = model.get_text_features(torch.tensor(golden["input_ids"]), torch.tensor(golden["attention_mask"]))
        image = model.get_image_features(pixels)
    for name, found in (("text", text), ("image", image), ("logits_per_image", output.logits_per_image)):
        torch.testing.assert_close(found, torch.tensor(golden[name]), rtol=0, atol=2e-5, msg=name)

"""Counted operations are those that torch itself counts while the towers run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from altclip_train.models.flops import image_flops, peak_flops, text_flops
from altclip_train.types import PackedTokens
from tests.tiny_models import CLIP_TEXTS, STUDENT_TEXTS, tiny_altclip, tiny_clip, tiny_student


def counted(compute):
    # The plain kernel, of matrix products that the counter knows on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("tower", "texts"), [(tiny_student(), STUDENT_TEXTS), (tiny_clip().text_model, CLIP_TEXTS)], ids=["xlmr", "clip"]
)
def test_texts(tower, texts):
    tokens = PackedTokens.from_lists(texts)
    assert text_flops(tower, tokens) == counted(lambda: tower.encode_packed(tokens))


def test_pictures():
    model = tiny_altclip()
    size = model.config.vision_config.image_size
    assert image_flops(model, 3) == counted(lambda: model.encode_image(torch.randn(3, 3, size, size)))


def test_peaks_are_found_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA GeForce GTX 1080") is None

"""Pixel values that are made on a GPU."""

from __future__ import annotations

import torch

from altclip_train.processing import ImageTransform


def test_pictures_have_the_bits_of_the_cpu_and_do_not_wait_for_the_device():
    transform = ImageTransform(size=16, crop_size=16)
    pixels = torch.arange(4 * 16 * 16 * 3, dtype=torch.int64).to(torch.uint8).view(4, 16, 16, 3)
    on_device = pixels.cuda()
    transform.normalize(on_device)  # what is only done once
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = transform.normalize(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(values.cpu(), transform.normalize(pixels))

"""The example of AltCLIP's documentation as a script, and a tiny model directory that it can be run on."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from altclip_train.models import AltCLIPConfig, AltCLIPModel, AltCLIPTextConfig, AltCLIPVisionConfig
from altclip_train.processing import (
    AltCLIPProcessor,
    CLIPImageProcessor,
    ImageTransform,
    XLMRTokenizer,
    train_sentencepiece,
)

# As it is documented; the package, the directory and the picture are filled in.
EXAMPLE = """
from PIL import Image
from {package} import AltCLIPModel, AltCLIPProcessor

model = AltCLIPModel.from_pretrained({directory!r})
processor = AltCLIPProcessor.from_pretrained({directory!r})

image = Image.open({picture!r})

inputs = processor(text=["a photo of a cat", "一张狗的照片"], images=image, return_tensors="pt", padding=True)

outputs = model(**inputs)
logits_per_image = outputs.logits_per_image  # this is the image-text similarity score
probs = logits_per_image.softmax(dim=1)  # we can take the softmax to get the label probabilities
"""


def run_example(package: str, directory: Path, picture: Path) -> Tensor:
    """Probabilities (1, 2) that the script arrives at with the classes of `package`."""
    names: dict[str, Tensor] = {}
    script = EXAMPLE.format(package=package, directory=str(directory), picture=str(picture))
    with torch.no_grad():
        exec(script, names)
    return names["probs"]


def make_directory(directory: Path) -> Path:
    """Write a tiny perturbed AltCLIP with its processor's files and `cat.png`; returns the picture's path."""
    texts = ["a photo of a cat", "a photo of a dog", "一张猫的照片", "一张狗的照片", "the red sofa, ein Hund"] * 20
    directory.mkdir(parents=True)
    train_sentencepiece(texts, directory / "pieces", 80)
    tokenizer = XLMRTokenizer(directory / "pieces")
    transform = ImageTransform(size=18, crop_size=18, mean=(0.48, 0.45, 0.4), std=(0.26, 0.25, 0.27))
    AltCLIPProcessor(CLIPImageProcessor(transform), tokenizer).save_pretrained(directory)
    text = AltCLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=44,
        max_position_embeddings=40,
        project_dim=20,
    )
    vision = AltCLIPVisionConfig(
        image_size=18, patch_size=6, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
    )
    torch.manual_seed(5)  # of the weights that are made with the model
    generator = torch.Generator().manual_seed(5)
    model = AltCLIPModel(AltCLIPConfig.from_text_vision_configs(text, vision, projection_dim=16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    pixels = torch.randint(0, 256, (30, 41, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).save(directory / "cat.png")
    return directory / "cat.png"

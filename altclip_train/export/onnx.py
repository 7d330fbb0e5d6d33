"""Both towers with their projections as ONNX files, checked by onnxruntime against torch.

`text.onnx` is `get_text_features`, `image.onnx` is `get_image_features`: projected, not normalised.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from altclip_train.export.checkpoint import TrainedModel
from altclip_train.model_card import Usage
from altclip_train.models import AltCLIPModel, CLIPModel

OPSET = 18
TOLERANCE = 1e-4  # of the largest number in the features
LARGEST_FILE = 1_800_000_000  # bytes of weights; a file of ONNX cannot pass 2 GB, beyond it they lie beside
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class TextFeatures(nn.Module):
    """`get_text_features` of padded texts."""

    def __init__(self, model: AltCLIPModel | CLIPModel) -> None:
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, D)."""
        return self.text_projection(self.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output)


class ImageFeatures(nn.Module):
    """`get_image_features`."""

    def __init__(self, model: AltCLIPModel | CLIPModel) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, D)."""
        return self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)


def require_onnx() -> None:
    """Raise ModuleNotFoundError that says what to install."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModuleNotFoundError(f"--format onnx needs {name}: pip install 'altclip_train[onnx]'") from error


def write_onnx(found: TrainedModel, directory: Path) -> None:
    """Write both towers, the files of the processor and a card. Raises ValueError when onnxruntime disagrees."""
    model = found.model
    if model.dtype != torch.float32:
        raise ValueError(f"ONNX files are written and checked as float32, not {model.dtype}: leave --dtype out")
    scale = float(model.logit_scale.detach().exp())
    length = {0: "batch", 1: "length"}
    difference = max(
        _write(
            directory / "text.onnx",
            TextFeatures(model),
            _texts(model),
            axes={"input_ids": length, "attention_mask": length},
            output="text_features",
            scale=scale,
        ),
        _write(
            directory / "image.onnx",
            ImageFeatures(model),
            _pictures(model),
            axes={"pixel_values": {0: "batch"}},
            output="image_features",
            scale=scale,
        ),
    )
    print(f"onnxruntime and torch differ by at most {difference:.1e} of the largest feature (allowed: {TOLERANCE:.0e})")
    model.config.save_pretrained(directory)
    found.processor.save_pretrained(directory)
    found.write_card(directory, _usage(model, scale, difference))


def _write(
    file: Path,
    tower: nn.Module,
    batches: list[dict[str, Tensor]],
    *,
    axes: Mapping[str, Mapping[int, str]],
    output: str,
    scale: float,
) -> float:
    """Write one tower and return how far onnxruntime is from torch on ``batches``; the last one is traced."""
    names = {name for one in axes.values() for name in one.values()}
    dimensions = {name: torch.export.Dim(name) for name in names}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            tower,
            kwargs=batches[-1],
            dynamo=True,
            opset_version=OPSET,
            input_names=list(axes),
            output_names=[output],
            dynamic_shapes={key: {axis: dimensions[name] for axis, name in one.items()} for key, one in axes.items()},
            verbose=False,
        )
    assert program is not None
    facts = {"output": "projected, not normalised", "logit_scale_exp": str(scale), "made_by": "altclip_train"}
    program.model.metadata_props.update(facts)
    size = sum(weight.numel() * weight.element_size() for weight in tower.parameters())
    program.save(file, external_data=size > LARGEST_FILE)
    return _check(file, tower, batches)


def _check(file: Path, tower: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in batches:
        (features,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            expected = tower(**batch)  # (B, D)
        difference = float((torch.from_numpy(features) - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:  # NaN fails too
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.items())
            raise ValueError(
                f"{file.name} is wrong: for {shapes} onnxruntime differs from torch by {difference:.1e} of the "
                f"largest feature, allowed are {TOLERANCE:.0e}; nothing is written"
            )
        worst = max(worst, difference)
    return worst


def _texts(model: AltCLIPModel | CLIPModel) -> list[dict[str, Tensor]]:
    """Batches of texts of several numbers and lengths, all but the first of each batch padded."""
    config = model.config.text_config
    generator = torch.Generator().manual_seed(0)
    longest = config.max_tokens
    batches = []
    for texts, length in ((1, 2), (1, longest), (5, longest), (4, min(7, longest)), (3, min(16, longest))):
        # Ends of texts are higher than all other ids: a CLIP may take a text's vector at its highest.
        input_ids = torch.randint(3, config.vocab_size - 1, (texts, length), generator=generator)
        real = torch.randint(2, length + 1, (texts,), generator=generator)
        real[0] = length
        columns = torch.arange(length)
        end = config.eos_token_id if config.eos_token_id > 2 else config.vocab_size - 1
        input_ids[torch.arange(texts), real - 1] = end
        mask = columns < real[:, None]  # (B, L)
        input_ids[~mask] = config.pad_token_id
        batches.append({"input_ids": input_ids, "attention_mask": mask.long()})
    return batches


def _pictures(model: AltCLIPModel | CLIPModel) -> list[dict[str, Tensor]]:
    config = model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    shape = (config.num_channels, config.image_size, config.image_size)
    return [{"pixel_values": torch.randn(number, *shape, generator=generator)} for number in (1, 5, 3)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not installed and of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _usage(model: AltCLIPModel | CLIPModel, scale: float, difference: float) -> Usage:
    processor = "AltCLIPProcessor" if isinstance(model, AltCLIPModel) else "CLIPProcessor"
    size = model.config.vision_config.image_size
    return Usage(
        tags=["onnx"],
        text=f"""\
`text.onnx` and `image.onnx` hold the towers with their projections, in opset {OPSET}. Inputs are float32 `pixel_values`
(batch, 3, {size}, {size}), and int64 `input_ids` and `attention_mask` (batch, length); batch and length are free. The
features are projected and **not normalised**. When these files were written, onnxruntime differed from torch by at most
{difference:.1e} of the largest feature.

```python
import numpy as np
import onnxruntime
from PIL import Image
from transformers import {processor}

processor = {processor}.from_pretrained("DIR")
text = onnxruntime.InferenceSession("DIR/text.onnx")
image = onnxruntime.InferenceSession("DIR/image.onnx")
inputs = processor(
    text=["a photo of a cat", "a photo of a dog"], images=Image.open("picture.jpg"), return_tensors="np", padding=True
)
(texts,) = text.run(None, {{name: inputs[name] for name in ("input_ids", "attention_mask")}})
(images,) = image.run(None, {{"pixel_values": inputs["pixel_values"]}})
texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
images /= np.linalg.norm(images, axis=-1, keepdims=True)
logits_per_image = {scale:.4f} * images @ texts.T  # the model's own scale
```""",
    )

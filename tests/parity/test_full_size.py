"""A checkpoint of the published size, ViT-L/14 beside XLM-R large: what loading it takes, and equal logits.

Needs 3.5 GB of disk and 5 GB of memory. The weights are random; names, shapes and sizes are the published ones.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from altclip_train.models import AltCLIPModel

pytestmark = pytest.mark.full_size

PARAMETERS = 864_186_113
WIDTH, INNER, JOINT, LAYERS = 1024, 4096, 768, 24  # both towers have this width and depth
LOGIT_SCALE = math.log(100)  # of the released checkpoint
TOLERANCE = 1e-4  # of logits, which reach 100
ALLOWANCE = 1.15  # peak memory over that of the loaded weights

CONFIG = {
    "architectures": ["AltCLIPModel"],
    "model_type": "altclip",
    "projection_dim": JOINT,
    "text_config": {
        "model_type": "altclip_text_model",
        "vocab_size": 250_002,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 16,
        "max_position_embeddings": 514,
        "project_dim": JOINT,
    },
    "vision_config": {
        "model_type": "altclip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 16,
        "patch_size": 14,
        "projection_dim": JOINT,
    },
}

# A process of its own, because the peak counts from its start; VmHWM, because ru_maxrss is inherited over exec.
LOAD = """
import json, sys, time
from pathlib import Path
import torch

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

start = time.perf_counter()
from altclip_train import AltCLIPModel
imported, before = time.perf_counter(), status("VmRSS")
model = AltCLIPModel.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(json.dumps({
    "peak": status("VmHWM") - before,
    "weights": sum(weight.numel() * weight.itemsize for weight in model.parameters()),
    "parameters": model.num_parameters(),
    "import_seconds": imported - start,
    "load_seconds": time.perf_counter() - imported,
}))
"""


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def text_shapes() -> dict[str, tuple[int, ...]]:
    embeddings, shapes = "text_model.roberta.embeddings", {}
    for table, rows in {"word": 250_002, "position": 514, "token_type": 1}.items():
        shapes[f"{embeddings}.{table}_embeddings.weight"] = (rows, WIDTH)
    shapes |= norm(f"{embeddings}.LayerNorm")
    for block in (f"text_model.roberta.encoder.layer.{number}" for number in range(LAYERS)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{block}.attention.{part}", WIDTH, WIDTH)
        shapes |= norm(f"{block}.attention.output.LayerNorm") | norm(f"{block}.output.LayerNorm")
        shapes |= linear(f"{block}.intermediate.dense", WIDTH, INNER) | linear(f"{block}.output.dense", INNER, WIDTH)
    return shapes | norm("text_model.pre_LN") | linear("text_model.transformation", WIDTH, JOINT)


def vision_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, WIDTH),
    }
    shapes |= norm("vision_model.pre_layrnorm") | norm("vision_model.post_layernorm")
    for block in (f"vision_model.encoder.layers.{number}" for number in range(LAYERS)):
        for part in "qkv":
            shapes |= linear(f"{block}.self_attn.{part}_proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}.self_attn.out_proj", WIDTH, WIDTH)
        shapes |= norm(f"{block}.layer_norm1") | norm(f"{block}.layer_norm2")
        shapes |= linear(f"{block}.mlp.fc1", WIDTH, INNER) | linear(f"{block}.mlp.fc2", INNER, WIDTH)
    return shapes


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal around 0, gains of norms around 1."""
    if name == "logit_scale":
        return torch.tensor(LOGIT_SCALE)
    is_gain = len(shape) == 1 and name.endswith(".weight")
    return torch.empty(shape).normal_(float(is_gain), 0.02, generator=generator)


def write_weights(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float32 safetensors file, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    generator = torch.Generator().manual_seed(0)
    with file.open("wb") as stream:
        stream.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            random_weight(name, shape, generator).numpy().tofile(stream)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full_size")
    shapes = text_shapes() | vision_shapes()
    shapes |= {"visual_projection.weight": (JOINT, WIDTH), "text_projection.weight": (JOINT, JOINT), "logit_scale": ()}
    assert sum(math.prod(shape) for shape in shapes.values()) == PARAMETERS
    try:
        (folder / "config.json").write_text(json.dumps(CONFIG))
        write_weights(folder / "model.safetensors", shapes)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_loading_takes_little_more_memory_than_the_loaded_weights(
    directory: Path, dtype: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bound is on what the result needs: 2 bytes a weight in bfloat16, although the file holds 4."""
    command = [sys.executable, "-c", LOAD, str(directory), dtype]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    ratio = found["peak"] / found["weights"]
    with capsys.disabled():
        print(
            f"\n{dtype}: {found['weights']:,} bytes of weights, {found['peak']:,} at the peak ({ratio:.4f} times), "
            f"import {found['import_seconds']:.1f} s, load {found['load_seconds']:.1f} s"
        )
    assert found["parameters"] == PARAMETERS
    assert found["weights"] == size * PARAMETERS
    assert 1 <= ratio <= ALLOWANCE


def inputs() -> dict[str, Tensor]:
    """Two texts of 5 and 12 tokens, two pictures."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 250_001, (2, 12), generator=generator)
    ids[:, 0], ids[0, 4], ids[1, 11], ids[0, 5:] = 0, 2, 2, 1
    pictures = torch.randn(2, 3, 224, 224, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "pixel_values": pictures}


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    return model(**inputs()).logits_per_text


def test_logits_are_those_of_transformers(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    # One model after the other: none of them stays.
    ours = logits(AltCLIPModel.from_pretrained(directory))
    expected = logits(transformers.AltCLIPModel.from_pretrained(directory, dtype=torch.float32).eval())
    with capsys.disabled():
        print(f"\nlogits {expected.flatten().tolist()}, largest difference {(ours - expected).abs().max():.2e}")
    # Logits that were all alike would be equal whatever a model did with its input.
    for way in (0, 1):
        assert (expected.diff(dim=way).abs() > 100 * TOLERANCE).all()
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)

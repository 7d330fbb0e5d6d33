"""Weights in: every file layout and spelling gives the same model, and what does not fit is listed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from altclip_train.evaluate import MODEL_FILES
from altclip_train.hub import WEIGHT_FILES, local_directory
from altclip_train.models import (
    AltCLIPConfig,
    AltCLIPModel,
    AltCLIPTextModel,
    AltCLIPVisionConfig,
    AltCLIPVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    assemble_altclip,
    build_clip,
    build_text_student,
    load_clip_text,
    load_model,
    open_clip,
    weight_files,
)
from altclip_train.models.weight_files import Stored
from altclip_train.types import PackedTokens
from tests.unit.test_models import (
    CLIP_TEXT_FIELDS,
    CLIP_TEXTS,
    STUDENT_TEXTS,
    VISION_FIELDS,
    padded,
    perturb,
    tiny_clip,
    tiny_student,
)

# Sizes that obey OpenAI's rule: heads are 64 wide.
WIDE_TEXT = {"hidden_size": 64, "intermediate_size": 72, "num_attention_heads": 1, "num_hidden_layers": 3}
WIDE_VISION = {"hidden_size": 128, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2}
Tensors = dict[str, Tensor]


def legacy_clip(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> CLIPModel:
    """A CLIP that pools at the highest id, as open_clip's and OpenAI's do."""
    fields = {**CLIP_TEXT_FIELDS, "eos_token_id": 2, "hidden_act": "quick_gelu", **(text or {})}
    model = build_clip(
        vision={**VISION_FIELDS, **(vision or {})}, text=fields, projection_dim=6, logit_scale_init_value=2.6592
    )
    perturb(model, 3)
    return model.eval()


def tiny_altclip() -> AltCLIPModel:
    config = AltCLIPConfig(
        text_config=tiny_student().config, vision_config=AltCLIPVisionConfig(**VISION_FIELDS), projection_dim=6
    )
    model = AltCLIPModel(config)
    perturb(model, 4)
    return model.eval()


def saved(model: CLIPModel | AltCLIPModel, directory: Path) -> Tensors:
    """Tensors of the model as we publish them; only its config.json stays in the directory."""
    model.save_pretrained(directory)
    file = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    return tensors


@torch.no_grad()
def features(model: CLIPModel | AltCLIPModel) -> list[Tensor]:
    texts, filler = (STUDENT_TEXTS, 1) if isinstance(model, AltCLIPModel) else (CLIP_TEXTS, 36)
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))
    model.eval()
    return [
        *(model.get_text_features(*padded(texts, filler)), model.get_image_features(pixels)),
        model.logit_scale.detach(),
    ]


def assert_same(found: CLIPModel | AltCLIPModel, model: CLIPModel | AltCLIPModel) -> None:
    """Bit-equal weights and features, and the same shape."""
    assert found.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    for ours, theirs in zip(features(found), features(model), strict=True):
        assert torch.equal(ours, theirs)


def openai_names(tensors: Tensors, text_layers: int = 3, vision_layers: int = 2) -> Tensors:
    """A CLIP as OpenAI names it: one matrix for queries, keys and values, projections the other way round."""
    named = {
        "logit_scale": tensors["logit_scale"],
        "text_projection": tensors["text_projection.weight"].T.contiguous(),
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T.contiguous(),
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        named[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        named[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        named[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        for ours, theirs, layers in (("text_model", "", text_layers), ("vision_model", "visual.", vision_layers)):
            for number in range(layers):
                old, new = f"{ours}.encoder.layers.{number}.", f"{theirs}transformer.resblocks.{number}."
                parts = [tensors[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                named[f"{new}attn.in_proj_{kind}"] = torch.cat(parts)
                named[f"{new}attn.out_proj.{kind}"] = tensors[f"{old}self_attn.out_proj.{kind}"]
                named[f"{new}ln_1.{kind}"] = tensors[f"{old}layer_norm1.{kind}"]
                named[f"{new}ln_2.{kind}"] = tensors[f"{old}layer_norm2.{kind}"]
                named[f"{new}mlp.c_fc.{kind}"] = tensors[f"{old}mlp.fc1.{kind}"]
                named[f"{new}mlp.c_proj.{kind}"] = tensors[f"{old}mlp.fc2.{kind}"]
    return named


def text_module(tensors: Tensors) -> Tensors:
    """open_clip's names where the text tower is a module of its own."""
    return {
        name if name == "logit_scale" or name.startswith("visual.") else f"text.{name}": tensor
        for name, tensor in tensors.items()
    }


OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 6,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 9,
            "layers": 2,
            "width": 8,
            "head_width": 4,
            "patch_size": 4,
            "mlp_ratio": 1.875,
        },
        "text_cfg": {
            "context_length": 14,
            "vocab_size": 37,
            "width": 10,
            "heads": 2,
            "layers": 3,
            "mlp_ratio": 2.0,
        },
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41]},
}


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def write_shards(tensors: Tensors, directory: Path, index: str, write: Callable[[Tensors, Path], None]) -> None:
    """Two shards that share the tensors in turn, and their index."""
    names = sorted(tensors)
    weight_map = {}
    stem, suffix = index.removesuffix(".index.json").split(".")
    for number in (1, 2):
        part = {name: tensors[name] for name in names[number - 1 :: 2]}
        shard = f"{stem}-0000{number}-of-00002.{suffix}"
        write(part, directory / shard)
        weight_map |= dict.fromkeys(part, shard)
    write_json(directory / index, {"metadata": {"total_size": 1}, "weight_map": weight_map})


def pickle_of_old(tensors: Tensors, file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Tensors, Path], None]] = {
    "one safetensors": lambda tensors, folder: save_file(tensors, folder / "model.safetensors"),
    "sharded safetensors": lambda t, folder: write_shards(t, folder, "model.safetensors.index.json", save_file),
    "one pickle": lambda tensors, folder: torch.save(tensors, folder / "pytorch_model.bin"),
    "pickle of old": lambda tensors, folder: pickle_of_old(tensors, folder / "pytorch_model.bin"),
    "sharded pickle": lambda t, folder: write_shards(t, folder, "pytorch_model.bin.index.json", torch.save),
}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_file_layout_gives_the_same_model(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "WINDOW", 1600)  # bytes: the embeddings are copied in two pieces
    model = tiny_clip()
    WRITERS[layout](saved(model, tmp_path), tmp_path)
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("vision", ["layers", "layer"])
@pytest.mark.parametrize("text", ["layers", "layer"])
@pytest.mark.parametrize("make", [tiny_clip, tiny_altclip])
def test_both_names_of_the_layers_load_in_both_towers(
    make: Callable[[], CLIPModel | AltCLIPModel], text: str, vision: str, tmp_path: Path
) -> None:
    model = make()
    spelled = {}
    for name, tensor in saved(model, tmp_path).items():
        for old in ("encoder.layers.", "encoder.layer."):
            number = text if name.startswith("text_model.") else vision
            if old in name:
                name = name.replace(old, f"encoder.{number}.")
                break
        spelled[name] = tensor
    save_file(spelled, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("spelling", [openai_names, lambda tensors: text_module(openai_names(tensors))])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "training state"])
def test_open_clip_directory_gives_the_same_model(
    spelling: Callable[[Tensors], Tensors], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bytes: matrices, also those that lie the other way round, are copied in pieces.
    monkeypatch.setattr(weight_files, "WINDOW", 100 if file.endswith(".safetensors") else 1600)
    model = legacy_clip()
    tensors = spelling(saved(model, tmp_path))
    (tmp_path / "config.json").unlink()
    write_json(tmp_path / "open_clip_config.json", OPEN_CLIP_CONFIG)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)  # as the latest versions store it
    if file == "training state":
        state = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "open_clip_pytorch_model.bin")
    elif file.endswith(".bin"):
        torch.save(tensors, tmp_path / file)
    else:
        save_file(tensors, tmp_path / file)
    assert_same(load_model(tmp_path), model)


def test_openai_names_beside_a_config_give_the_same_model(tmp_path: Path) -> None:
    model = legacy_clip()
    save_file(openai_names(saved(model, tmp_path)), tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_openai_file_without_a_config_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = legacy_clip(WIDE_TEXT, WIDE_VISION)
    tensors = openai_names(saved(model, tmp_path))
    (tmp_path / "config.json").unlink()
    sizes = {"input_resolution": torch.tensor(9), "context_length": torch.tensor(14), "vocab_size": torch.tensor(37)}
    torch.save({**tensors, **sizes}, tmp_path / "ViT.pt")
    with pytest.raises(ValueError, match=r"is none of OpenAI's: put the open_clip_config\.json"):
        load_model(tmp_path)
    monkeypatch.setattr(open_clip, "_OPENAI_TOWERS", {(128, 2)})
    found = load_model(tmp_path)
    assert "read as OpenAI's CLIP, with heads 64 wide and quick_gelu" in caplog.text
    assert found.config.vision_config.image_size == 8  # two whole patches; the ninth pixel left no trace
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    inputs = padded(CLIP_TEXTS, 36)
    with torch.no_grad():
        assert torch.equal(found.get_text_features(*inputs), model.get_text_features(*inputs))


@pytest.mark.parametrize(
    ("width", "layers", "patch", "size", "text_width", "joint"),
    [(768, 12, 32, 224, 512, 512), (768, 12, 16, 224, 512, 512), (1024, 24, 14, 336, 768, 768)],
)
def test_shapes_tell_openai_models(
    width: int, layers: int, patch: int, size: int, text_width: int, joint: int, tmp_path: Path
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((size // patch) ** 2 + 1, width),
        "text_model.embeddings.token_embedding.weight": (49408, text_width),
        "text_model.embeddings.position_embedding.weight": (77, text_width),
        "text_projection.weight": (joint, text_width),
    }
    for tower, depth, wide in (("text_model", 12, text_width), ("vision_model", layers, width)):
        for number in range(depth):
            shapes[f"{tower}.encoder.layers.{number}.mlp.fc1.weight"] = (4 * wide, wide)
            shapes[f"{tower}.encoder.layers.{number}.layer_norm1.weight"] = (wide,)
    tensors = {name: Stored(tmp_path / "ViT.pt", name, shape, torch.half) for name, shape in shapes.items()}
    found = CLIPConfig.from_dict(open_clip.from_openai_shapes(tensors, tmp_path))
    text, vision = found.text_config, found.vision_config
    assert (vision.image_size, vision.patch_size) == (size, patch)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (layers, width // 64)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (text_width, 12, text_width // 64)
    assert (found.projection_dim, text.vocab_size, text.max_position_embeddings) == (joint, 49408, 77)
    assert {text.hidden_act, vision.hidden_act} == {"quick_gelu"}
    assert text.eos_token_id == 2


@pytest.mark.parametrize(
    ("joint", "vision", "text", "heads", "hidden"),
    [
        (1024, {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, (1024, 16, 24), 16, 5120),  # H/14
        (
            1024,
            {"layers": 40, "width": 1408, "head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14},
            (1024, 16, 24),
            16,
            6144,
        ),  # g/14
        (512, {"layers": 12, "width": 768, "patch_size": 32}, (512, 8, 12), 12, 3072),  # B/32
    ],
)
def test_open_clip_config_gives_heads_hidden_widths_and_gelu(
    joint: int, vision: dict[str, Any], text: tuple[int, int, int], heads: int, hidden: int, tmp_path: Path
) -> None:
    width, text_heads, layers = text
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": text_heads, "layers": layers}
    content = {"model_cfg": {"embed_dim": joint, "vision_cfg": {"image_size": 224, **vision}, "text_cfg": text_cfg}}
    found = CLIPConfig.from_dict(open_clip.from_open_clip(content, tmp_path))
    assert (found.vision_config.num_attention_heads, found.vision_config.intermediate_size) == (heads, hidden)
    assert (found.text_config.num_attention_heads, found.text_config.intermediate_size) == (text_heads, 4 * width)
    assert (found.text_config.hidden_act, found.vision_config.hidden_act) == ("gelu", "gelu")
    assert found.projection_dim == joint


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "'xlm-roberta-base' of another library"),
        ("vision_cfg", {"timm_model_name": "convnext"}, "'convnext' of another library"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "is a ResNet"),
        ("vision_cfg", {"global_average_pool": True}, r"vision_cfg\.global_average_pool=True is not supported"),
        ("text_cfg", {"pool_type": "last"}, r"text_cfg\.pool_type='last' is not supported"),
        ("text_cfg", {"width": "10"}, "has a wrong one"),
        ("vision_cfg", {"head_width": 0}, "has a wrong one"),
        ("vision_cfg", {"mlp_ratio": math.inf}, "has a wrong one"),
    ],
)
def test_open_clip_models_of_other_kinds_are_refused_by_field(
    part: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = json.loads(json.dumps(OPEN_CLIP_CONFIG))
    content["model_cfg"][part] |= change
    write_json(tmp_path / "open_clip_config.json", content)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json.*{message}"):
        load_model(tmp_path)


STRAY: dict[str, Tensors] = {
    "clip": {
        "text_model.embeddings.position_ids": torch.arange(14)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    },
    "altclip": {
        "text_model.roberta.embeddings.position_ids": torch.arange(14)[None],
        "text_model.roberta.embeddings.token_type_ids": torch.zeros(1, 14).long(),
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    },
}


@pytest.mark.parametrize("make", [tiny_clip, tiny_altclip])
def test_stray_buffers_are_ignored(make: Callable[[], CLIPModel | AltCLIPModel], tmp_path: Path) -> None:
    model = make()
    save_file({**saved(model, tmp_path), **STRAY[model.config.model_type]}, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("spelling", [openai_names, lambda tensors: text_module(openai_names(tensors))])
def test_stray_buffers_of_open_clip_are_ignored(spelling: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    model = legacy_clip()
    tensors = spelling({**saved(model, tmp_path)})
    mask = "attn_mask" if "text_projection" in tensors else "text.attn_mask"
    save_file({**tensors, mask: torch.zeros(14, 14)}, tmp_path / "model.safetensors")
    assert_same(load_model(tmp_path), model)


def test_dtype_and_device_are_those_asked_for(tmp_path: Path) -> None:
    model = tiny_altclip()
    save_file(saved(model, tmp_path), tmp_path / "model.safetensors")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        loaded = AltCLIPModel.from_pretrained(tmp_path, dtype=dtype, device="cpu")
        assert (loaded.dtype, loaded.device, loaded.training) == (dtype, torch.device("cpu"), False)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor.to(dtype)), name
    away = load_model(tmp_path, dtype=torch.float16, device="meta")
    assert {(tensor.dtype, tensor.is_meta) for tensor in away.state_dict().values()} == {(torch.float16, True)}


def test_tokenizer_fingerprint_is_kept_through_load_and_save(tmp_path: Path) -> None:
    model = tiny_altclip()
    model.save_pretrained(tmp_path / "none")
    assert load_model(tmp_path / "none").tokenizer_sha256 is None
    model.tokenizer_sha256 = "ab" * 32
    model.save_pretrained(tmp_path / "first")
    again = load_model(tmp_path / "first")
    assert again.tokenizer_sha256 == "ab" * 32
    again.save_pretrained(tmp_path / "second")
    assert AltCLIPTextModel.from_pretrained(tmp_path / "second").tokenizer_sha256 == "ab" * 32
    assert build_text_student(student=tmp_path / "second", project_dim=10) is not None


def test_towers_come_out_of_whole_models_and_of_their_own_directories(tmp_path: Path) -> None:
    clip, altclip = tiny_clip(), tiny_altclip()
    clip.save_pretrained(tmp_path / "clip")
    altclip.save_pretrained(tmp_path / "altclip")
    for whole, kind, source in (
        ("clip", CLIPTextModel, clip.text_model),
        ("clip", AltCLIPVisionModel, clip.vision_model),
        ("altclip", AltCLIPTextModel, altclip.text_model),
        ("altclip", AltCLIPVisionModel, altclip.vision_model),
    ):
        tower = kind.from_pretrained(tmp_path / whole)
        alone = tmp_path / f"{whole}_{kind.__name__}"
        tower.save_pretrained(alone)
        for found in (tower, kind.from_pretrained(alone)):
            assert not found.training
            assert found.state_dict().keys() == source.state_dict().keys()
            for name, tensor in source.state_dict().items():
                assert torch.equal(found.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="model_type is 'clip', expected 'altclip_text_model'"):
        AltCLIPTextModel.from_pretrained(tmp_path / "clip")


def test_students_and_handoff_read_the_other_layouts_too(tmp_path: Path) -> None:
    altclip, clip = tiny_altclip(), legacy_clip()
    tensors = saved(altclip, tmp_path / "altclip")
    tensors = {name.replace("roberta.encoder.layer.", "roberta.encoder.layers."): tensors[name] for name in tensors}
    WRITERS["sharded pickle"](tensors, tmp_path / "altclip")
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


def test_saved_model_loads_back_bit_equal_with_published_names(tmp_path: Path) -> None:
    model = tiny_clip()
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "text_model.encoder.layers.2.self_attn.k_proj.bias" in names
    assert "vision_model.pre_layrnorm.weight" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(tmp_path)
    assert isinstance(loaded, CLIPModel)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    model = tiny_clip()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    for name, tensor in load_model(tmp_path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float()), name


def test_weight_error_lists_every_missing_unexpected_and_misshapen_tensor(tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_model.encoder.layers.1.self_attn.q_proj.bias"]
    del tensors["logit_scale"]
    tensors["vision_model.extra.weight"] = torch.zeros(2)
    tensors["text_projection.weight"] = torch.zeros(6, 11)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_model(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: logit_scale",
        "  missing: text_model.encoder.layers.1.self_attn.q_proj.bias",
        "  unexpected: vision_model.extra.weight",
        "  shape of text_projection.weight: found (6, 11), expected (6, 10)",
    ]


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape of"])
def test_each_kind_of_weight_error_alone_is_enough(fault: str, tmp_path: Path) -> None:
    tiny_clip().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    if fault == "missing":
        del tensors["text_model.final_layer_norm.bias"]
    elif fault == "unexpected":
        tensors["text_model.encoder.layers.3.layer_norm1.bias"] = torch.zeros(10)
    else:
        tensors["text_model.encoder.layers.0.self_attn.k_proj.weight"] = torch.zeros(10, 9)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"config\.json:\n  {fault}[^\n]*$"):
        load_clip_text(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*notes\.txt"):
        load_model(tmp_path)
    CLIPConfig(text_config=CLIPTextConfig(**CLIP_TEXT_FIELDS)).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*notes\.txt"):
        load_model(tmp_path)


def test_other_kinds_of_model_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert', expected 'altclip' or 'clip'"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="'bert', expected a whole CLIP"):
        load_clip_text(tmp_path)
    with pytest.raises(ValueError, match="'bert', expected 'xlm-roberta' or 'altclip'"):
        build_text_student(student=tmp_path, project_dim=10)


def test_each_leftover_missing_misshapen_and_mistyped_name_of_open_clip_is_listed_in_one_error(tmp_path: Path) -> None:
    tensors = openai_names(saved(legacy_clip(), tmp_path))
    del tensors["transformer.resblocks.1.attn.in_proj_bias"]
    tensors["visual.attnpool.weight"] = torch.zeros(3)
    tensors["visual.proj"] = torch.zeros(6, 8)
    tensors["ln_final.bias"] = torch.zeros(10, dtype=torch.int32)
    tensors["ln_final.weight"] = torch.zeros(10, dtype=torch.bool)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_model(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: text_model.encoder.layers.1.self_attn.q_proj.bias",
        "  missing: text_model.encoder.layers.1.self_attn.k_proj.bias",
        "  missing: text_model.encoder.layers.1.self_attn.v_proj.bias",
        "  unexpected: visual.attnpool.weight",
        "  shape of visual.proj: found (8, 6), expected (6, 8)",
        "  type of ln_final.weight: found torch.bool, expected a floating-point type",
        "  type of ln_final.bias: found torch.int32, expected a floating-point type",
    ]


def test_the_same_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = saved(tiny_clip(), tmp_path)
    name = "text_model.encoder.layers.0.mlp.fc1.bias"
    save_file({**tensors, name.replace("layers", "layer"): torch.zeros(20)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"same tensor as text_model\.encoder\.layer.*fc1\.bias"):
        load_model(tmp_path)


def test_every_kind_of_weights_that_is_read_is_taken_by_the_evaluation() -> None:
    taken = {name for [name] in MODEL_FILES["its weights"]}
    assert set(weight_files.SINGLE) <= taken
    assert {"model.safetensors.index.json", "pytorch_model.bin.index.json"} <= taken


class FakeHub:
    """`huggingface_hub.snapshot_download` of one repository, which is a local folder."""

    def __init__(self, model: AltCLIPModel, repository: Path, cache: Path) -> None:
        self.model, self.repository, self.cache = model, repository, cache
        self.asked: list[str] = []

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == "org/name"
        self.asked += allow_patterns
        self.cache.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in self.repository.glob(pattern):
                (self.cache / file.name).write_bytes(file.read_bytes())
        return str(self.cache)

    def fetched(self) -> set[str]:
        return {file.name for file in self.cache.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with one AltCLIP; the working directory holds nothing."""
    model = tiny_altclip()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model.save_pretrained(tmp_path / "repository")
    for name in ("pytorch_model.bin", "tf_model.h5", "picture.png", "merges.txt", "sentencepiece.bpe.model"):
        (tmp_path / "repository" / name).write_bytes(b"x")
    hub = FakeHub(model, tmp_path / "repository", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=hub.snapshot_download))
    return hub


def test_hub_id_loads_and_only_what_is_needed_is_fetched(hub: FakeHub) -> None:
    assert_same(load_model("org/name"), hub.model)
    assert hub.fetched() == {"config.json", "merges.txt", "sentencepiece.bpe.model", "model.safetensors"}
    assert AltCLIPConfig.from_pretrained("org/name") == hub.model.config


def test_configs_and_tokenizers_of_a_hub_id_fetch_no_weights(hub: FakeHub) -> None:
    local_directory("org/name")
    assert hub.fetched() == {"config.json", "merges.txt", "sentencepiece.bpe.model"}


@pytest.mark.parametrize("kind", range(len(WEIGHT_FILES)))
def test_the_best_kind_of_weights_on_the_hub_is_fetched_and_no_other(hub: FakeHub, kind: int) -> None:
    (hub.repository / "model.safetensors").unlink()
    for pattern in WEIGHT_FILES[kind:]:
        (hub.repository / pattern[-1].replace("*", "00001-of-00002")).write_bytes(b"x")
    if kind != 2:
        (hub.repository / "pytorch_model.bin").unlink()
    before = {"config.json", "merges.txt", "sentencepiece.bpe.model"}
    wanted = {WEIGHT_FILES[kind][-1].replace("*", "00001-of-00002")} | ({"pytorch_model.bin"} if kind == 2 else set())
    directory = local_directory("org/name", weights=True)
    assert hub.fetched() - before == wanted
    assert directory == hub.cache


def test_local_directory_wins_over_a_hub_id(hub: FakeHub) -> None:
    tiny_clip().save_pretrained("org/name")
    assert isinstance(load_model("org/name"), CLIPModel)
    with pytest.raises(FileNotFoundError, match="org/nmae is not a directory"):
        load_model("org/nmae")  # its folder is here, so that it is a mistyped path and no hub id
    assert not hub.asked


def test_hub_id_without_huggingface_hub_says_what_to_do(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = "org/name is no directory here.*pip install huggingface_hub, or download org/name by hand"
    for read in (load_model, AltCLIPModel.from_pretrained, AltCLIPConfig.from_pretrained):
        with pytest.raises(ModuleNotFoundError, match=message):
            read("org/name")
    assert not hub.asked


def test_unreachable_hub_is_named_with_its_reason(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long trace")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"ConnectionError: no route to host\).*pass its directory$") as caught:
        load_model("org/name")
    assert "\n" not in str(caught.value)
    assert not hub.asked

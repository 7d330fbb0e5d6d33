"""`altclip export`: what is written, and what is refused with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from altclip_train.cli import main
from altclip_train.export import export
from altclip_train.export.open_clip import open_clip_config, open_clip_state
from altclip_train.models import AltCLIPModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from altclip_train.processing import AltCLIPProcessor, XLMRTokenizer, load_tokenizer
from tests.tiny_models import save_altclip
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def altclip(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = XLMRTokenizer.from_pretrained(workspace.starter / "tokenizer")
    return save_altclip(tmp_path_factory.mktemp("altclip"), tokenizer)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["export", *map(str, arguments)])
    message = f"{exit_.value.code}{capsys.readouterr().err}"
    assert "Traceback" not in message
    return message


def test_directory_keeps_every_bit(altclip: Path, tmp_path: Path):
    main(["export", str(altclip), str(tmp_path / "out")])
    old, new = load_file(altclip / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    names = {file.name for file in altclip.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names | {"README.md"}
    for name in names - {"model.safetensors"}:
        assert (altclip / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_tokenizer_travels_in_the_metadata_also_of_weights_that_do_not_say(altclip: Path, tmp_path: Path):
    source = shutil.copytree(altclip, tmp_path / "source")
    model = AltCLIPModel.from_pretrained(source)
    model.tokenizer_sha256 = None
    model.save_pretrained(source)
    for number, directory in enumerate((altclip, source)):
        out = export(directory, tmp_path / str(number))
        assert AltCLIPModel.from_pretrained(out).tokenizer_sha256 == load_tokenizer(altclip).fingerprint


@pytest.mark.parametrize("format", ["altclip", "open_clip"])
def test_every_file_has_the_mode_that_the_umask_leaves(
    altclip: Path, workspace: Workspace, tmp_path: Path, format: str
):
    before = os.umask(0o027)
    try:
        out = export(altclip if format == "altclip" else workspace.clip, tmp_path / "out", format=format)
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in out.iterdir()} == dict.fromkeys(
        (file.name for file in out.iterdir()), "0o640"
    )
    assert out.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_of_the_weights(altclip: Path, tmp_path: Path, dtype: str):
    export(altclip, tmp_path / "out", dtype=dtype)
    wide, narrow = load_file(altclip / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(narrow[name], wide[name].to(getattr(torch, dtype))) for name in wide)


def test_number_that_a_dtype_cannot_hold_is_refused(altclip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = AltCLIPModel.from_pretrained(altclip)
    with torch.no_grad():
        model.text_projection.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "large")
    AltCLIPProcessor.from_pretrained(altclip).save_pretrained(tmp_path / "large")
    message = fails(capsys, tmp_path / "large", tmp_path / "out", "--dtype", "float16")
    assert "text_projection.weight is not finite as torch.float16" in message
    assert not (tmp_path / "out").exists()


def test_card_of_published_weights_stays_what_it_says(altclip: Path, tmp_path: Path):
    first = export(altclip, tmp_path / "first")
    (first / "README.md").write_text("---\nlicense: mit\n---\n\n# Theirs\n", encoding="utf-8")
    card = (export(first, tmp_path / "second") / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n---\n\n# Theirs\n\n## How to load these files\n")


def test_directory_that_holds_something_is_refused(altclip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine").write_text("keep")
    assert f"{tmp_path} exists already" in fails(capsys, altclip, tmp_path)
    assert f"{tmp_path / 'mine'} exists already" in fails(capsys, altclip, tmp_path / "mine")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    main(["export", str(altclip), str(tmp_path / "empty")])
    assert (tmp_path / "empty" / "config.json").is_file()


def test_failure_in_the_middle_leaves_nothing(
    altclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full_disk(*_: object) -> None:
        raise ValueError("disk")

    monkeypatch.setattr(AltCLIPProcessor, "save_pretrained", full_disk)
    with pytest.raises(ValueError, match="disk"):
        main(["export", str(altclip), str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()


def test_checkpoint_that_is_not_there_names_what_to_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = fails(capsys, tmp_path / "nowhere", tmp_path / "out")
    assert f"{tmp_path / 'nowhere'} does not exist; pass a model directory, a run directory or RUN" in message


def test_hub_id_is_exported_with_its_card(altclip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = shutil.copytree(altclip, tmp_path / "cached")
    (cached / "README.md").write_text("---\nlicense: mit\n---\n\n# Theirs\n", encoding="utf-8")
    asked: list[str] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == "org/name"
        asked.extend(allow_patterns)
        return str(cached)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.chdir(tmp_path)
    main(["export", "org/name", "out"])
    assert {"README.md", "model.safetensors"} <= set(asked)
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: mit\n---\n\n# Theirs")
    old, new = load_file(altclip / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_hub_id_without_huggingface_hub_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    message = fails(capsys, "org/name", "out")
    assert "org/name is no directory here, and hub ids need huggingface_hub: pip install huggingface_hub" in message
    assert list(tmp_path.iterdir()) == []


def test_unknown_format_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(ValueError, match="formats are"):
        export(tmp_path, tmp_path / "out", format="coreml")


def test_onnx_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = fails(capsys, tmp_path, tmp_path / "out", "--format", "onnx")
    assert "--format onnx needs onnxruntime: pip install 'altclip_train[onnx]'" in message


def test_onnx_in_half_precision_is_refused(altclip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = fails(capsys, altclip, tmp_path / "out", "--format", "onnx", "--dtype", "float16")
    assert "ONNX files are written and checked as float32, not torch.float16" in message
    assert list(tmp_path.iterdir()) == []


def test_open_clip_has_no_place_for_an_altclip(altclip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = fails(capsys, altclip, tmp_path / "out", "--format", "open_clip")
    assert "AltCLIP has pre_LN and a transformation with a bias" in message
    assert list(tmp_path.iterdir()) == []


# The state of open_clip 3.3's CLIP, written down from its modules: 2 text layers of width 20 and 32 between,
# 1 vision layer of width 24 and 28 between, patches of 16, 5 positions, 900 tokens, 77 positions, 12 joint.
OPEN_CLIP_SHAPES = {
    "logit_scale": (),
    "positional_embedding": (77, 20),
    "text_projection": (20, 12),
    "token_embedding.weight": (900, 20),
    "ln_final.weight": (20,),
    "ln_final.bias": (20,),
    "visual.proj": (24, 12),
    "visual.class_embedding": (24,),
    "visual.positional_embedding": (5, 24),
    "visual.conv1.weight": (24, 3, 16, 16),
    "visual.ln_pre.weight": (24,),
    "visual.ln_pre.bias": (24,),
    "visual.ln_post.weight": (24,),
    "visual.ln_post.bias": (24,),
}
for prefix, layers, width, hidden in (("", 2, 20, 32), ("visual.", 1, 24, 28)):
    for layer in range(layers):
        block = f"{prefix}transformer.resblocks.{layer}."
        OPEN_CLIP_SHAPES |= {
            f"{block}attn.in_proj_weight": (3 * width, width),
            f"{block}attn.in_proj_bias": (3 * width,),
            f"{block}attn.out_proj.weight": (width, width),
            f"{block}attn.out_proj.bias": (width,),
            f"{block}ln_1.weight": (width,),
            f"{block}ln_1.bias": (width,),
            f"{block}ln_2.weight": (width,),
            f"{block}ln_2.bias": (width,),
            f"{block}mlp.c_fc.weight": (hidden, width),
            f"{block}mlp.c_fc.bias": (hidden,),
            f"{block}mlp.c_proj.weight": (width, hidden),
            f"{block}mlp.c_proj.bias": (width,),
        }


def test_open_clip_names_and_shapes(workspace: Workspace):
    model = CLIPModel.from_pretrained(workspace.clip)
    found = {name: tuple(tensor.shape) for name, tensor in open_clip_state(model).items()}
    vocabulary = model.config.text_config.vocab_size
    assert found == {**OPEN_CLIP_SHAPES, "token_embedding.weight": (vocabulary, 20)}


@pytest.mark.parametrize(
    ("end", "eps"),
    [(2, 1e-5), (5, 1e-3), (-1, 1e-5)],
    ids=["the highest id", "an id and norms of its own", "the last of the vocabulary"],
)
def test_open_clip_files_alone_give_the_same_model_back(workspace: Workspace, tmp_path: Path, end: int, eps: float):
    """The configuration and the weights that open_clip reads, and a tokenizer: no file of another layout."""
    size = CLIPConfig.from_pretrained(workspace.clip).text_config.vocab_size
    clip = workspace.build_clip(tmp_path / "clip", eos_token_id=end % size, layer_norm_eps=eps)
    directory = export(clip, tmp_path / "out", format="open_clip")
    (directory / "preprocessor_config.json").unlink()
    assert not (directory / "config.json").exists()
    old, new = CLIPModel.from_pretrained(clip), CLIPModel.from_pretrained(directory)
    assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in old.state_dict().items())
    assert new.config.text_config.layer_norm_eps == old.config.text_config.layer_norm_eps
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    texts = ["a red apple", "a dog, a cat, and a dog"]
    before, after = (
        AltCLIPProcessor.from_pretrained(one)(text=texts, images=picture, return_tensors="pt", padding=True)
        for one in (clip, directory)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(old(**before).logits_per_image, new(**after).logits_per_image)


def test_weights_of_open_clip_know_their_tokenizer_too(workspace: Workspace, tmp_path: Path):
    directory = export(workspace.clip, tmp_path / "out", format="open_clip")
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(ValueError, match="belong to another tokenizer"):
        load_tokenizer(directory)


def test_open_clip_config_of_a_published_shape():
    text = CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    vision = CLIPVisionConfig(
        hidden_size=1408,
        intermediate_size=6144,
        num_hidden_layers=40,
        num_attention_heads=16,
        patch_size=14,
        hidden_act="gelu",
    )
    text.hidden_act = "gelu"
    config = open_clip_config(CLIPConfig(text_config=text, vision_config=vision, projection_dim=1024))
    # ViT-g-14 of open_clip's own model_configs, which leaves defaults out and rounds mlp_ratio to 4.3637.
    assert config["embed_dim"] == 1024
    assert not config["quick_gelu"]
    ratio = config["vision_cfg"].pop("mlp_ratio")
    assert int(1408 * ratio) == 6144 == int(1408 * 4.3637)
    assert config["vision_cfg"] == {"image_size": 224, "layers": 40, "width": 1408, "head_width": 88, "patch_size": 14}
    names = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
    assert [config["text_cfg"][name] for name in names] == [77, 49408, 1024, 16, 24, 4.0]
    assert "pool_type" not in config["text_cfg"]  # the end of text is the highest id


def test_open_clip_computes_the_same_widths_from_the_ratio():
    for hidden in range(25, 400):
        vision = CLIPVisionConfig(hidden_size=24, intermediate_size=hidden, num_attention_heads=2)
        config = open_clip_config(CLIPConfig(text_config=CLIPTextConfig(), vision_config=vision))
        assert int(24 * config["vision_cfg"]["mlp_ratio"]) == hidden


def test_open_clip_takes_other_ends_of_text_and_norms():
    text = CLIPTextConfig(eos_token_id=5, layer_norm_eps=1e-6)
    config = open_clip_config(CLIPConfig(text_config=text))["text_cfg"]
    assert (config["pool_type"], config["eos_id"], config["norm_kwargs"]) == ("eos", 5, {"eps": 1e-6})


def test_open_clip_has_one_activation():
    with pytest.raises(ValueError, match="one activation for both towers"):
        open_clip_config(CLIPConfig(text_config=CLIPTextConfig(hidden_act="gelu")))


def test_open_clip_has_no_other_crop_than_the_size(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clip = workspace.build_clip(tmp_path / "clip")
    file = clip / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": {"shortest_edge": 36}}))
    message = fails(capsys, clip, tmp_path / "out", "--format", "open_clip")
    assert "this model's transform resizes to 36, crops 32, with bicubic" in message


def test_help_names_the_formats(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("CHECKPOINT", "DIR", "altclip", "onnx", "open_clip", "float16"))

"""OpenAI's own files are TorchScript archives: their tensors are read, and nothing in them runs."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from altclip_train.models import load_model, open_clip, weight_files
from altclip_train.models.torchscript import is_torchscript, read_torchscript
from tests.weight_spellings import legacy_clip, openai_names, saved


class Part(nn.Module):
    """Any module; its parts and tensors are put in from outside."""


def archive(tensors: dict[str, Tensor], file: Path) -> Path:
    """A module with these parameters and buffers, as `torch.jit.save` writes it."""
    whole = Part()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place: nn.Module = whole
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, Part())
            place = getattr(place, part)
        if tensor.is_floating_point():
            place.register_parameter(last, nn.Parameter(tensor))
        else:
            place.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(whole), file)
    return file


def loaded_by_torch(file: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(file).state_dict()


def test_tensors_are_those_of_torch_in_every_type_and_layout(tmp_path: Path) -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tensors = {
        "a": matrix.half(),
        "visual.b": matrix.bfloat16(),
        "visual.proj": matrix.T,  # rows that lie apart
        "visual.blocks.0.part": matrix[1:3, 1:],  # of a larger storage
        "scale": torch.tensor(2.5),
        "resolution": torch.tensor(224),
        "nothing": torch.zeros(0, 3),
    }
    file = archive(tensors, tmp_path / "ViT.pt")
    assert is_torchscript(file)
    expected, found, shapes = loaded_by_torch(file), *(read_torchscript(file, values=v) for v in (True, False))
    assert found.keys() == shapes.keys() == expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].stride() == tensor.stride(), name
        assert found[name].dtype == shapes[name].dtype == tensor.dtype, name
        assert (shapes[name].shape, shapes[name].is_meta) == (tensor.shape, True), name


def test_file_of_openai_gives_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_files, "WINDOW", 1600)  # bytes: the file is opened many times
    monkeypatch.setattr(open_clip, "_OPENAI_TOWERS", {(64, 2)})
    text = {"hidden_size": 64, "intermediate_size": 72, "num_attention_heads": 1, "num_hidden_layers": 3}
    vision = {"hidden_size": 64, "intermediate_size": 20, "num_attention_heads": 1, "num_hidden_layers": 2}
    model = legacy_clip(text, vision)
    tensors = {name: tensor.half() for name, tensor in openai_names(saved(model, tmp_path)).items()}
    (tmp_path / "config.json").unlink()
    sizes = {"input_resolution": torch.tensor(9), "context_length": torch.tensor(14), "vocab_size": torch.tensor(37)}
    archive({**tensors, **sizes}, tmp_path / "ViT.pt")
    found = load_model(tmp_path)
    assert "read as OpenAI's CLIP" in caplog.text
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.half().float()), name


def test_what_torch_saves_otherwise_is_none(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "new.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not is_torchscript(tmp_path / "new.pt")
    assert not is_torchscript(tmp_path / "old.pt")


def rewritten(file: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The same archive with other contents of its entries."""
    with zipfile.ZipFile(file) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, change(name, content))


def test_payload_of_an_archive_does_not_run(tmp_path: Path) -> None:
    payload = f"cos\nmkdir\n(V{tmp_path / 'ran'}\ntR.".encode()
    file = archive({"scale": torch.ones(3)}, tmp_path / "ViT.pt")
    rewritten(file, lambda name, content: payload if name.endswith("/data.pkl") else content)
    with pytest.raises(ValueError, match=r"ViT\.pt cannot be read as plain tensors .*never run") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # it works where it is let
    assert (tmp_path / "ran").exists()


SAID: dict[str, bytes] = {
    "no module": pickle.dumps([1, 2]),
    "a module in itself": b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
    "a type that is called": b"\x80\x02ctorch\nHalfStorage\n)R.",
    "a function of Python": b"\x80\x02c__builtin__\nlen\nX\x01\x00\x00\x001\x85R.",
    "a number that would take 16 GB": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "cut": pickle.dumps({})[:-1],
    "nothing": b"",
}
MORE = ["compressed", "short entry", "shape beyond its entry"]


@pytest.mark.parametrize("damage", [*SAID, *MORE])
def test_damaged_archive_is_named(damage: str, tmp_path: Path) -> None:
    file = archive({"scale": torch.ones(3), "other": torch.ones(200)}, tmp_path / "ViT.pt")
    weight_files._open(file, {"scale", "other"})

    def change(name: str, content: bytes) -> bytes:
        if damage == "shape beyond its entry" and name.endswith("/data.pkl"):
            assert content.count(b"(K\x03t") == 1
            return content.replace(b"(K\x03t", b"(K\x04t")
        if damage == "short entry" and "/data/" in name:
            return content[:-1]
        return SAID.get(damage, content) if name.endswith("/data.pkl") else content

    rewritten(file, change, zipfile.ZIP_DEFLATED if damage == "compressed" else zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=r"ViT\.pt cannot be read as plain tensors"):
        weight_files._open(file, {"scale", "other"})

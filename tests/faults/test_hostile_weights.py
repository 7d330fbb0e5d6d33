"""Damaged and hostile model directories end in one clear line, run nothing and take no memory."""

from __future__ import annotations

import json
import pickle
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from altclip_train.models import build_text_student, load_clip_text, load_model
from tests.tiny_models import tiny_clip

pytestmark = pytest.mark.faults

READERS = [load_model, load_clip_text, lambda directory: build_text_student(student=directory, project_dim=10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole tiny CLIP, to be damaged."""
    tiny_clip().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """Whatever asks for more than 2 GiB beyond what is in use fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def assert_refused(folder: Path, file: str, message: str, kind: type[Exception] = ValueError) -> None:
    """The error is of `kind`, names the file and is one line."""
    with pytest.raises(kind, match=message) as caught:
        load_model(folder)
    assert str(folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    """Creates a file when it is unpickled by whoever runs what a pickle says."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle", "beside the weights", "OpenAI file", "shard"])
def test_payload_of_a_pickle_does_not_run(form: str, folder: Path, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "ran")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / ("model.pt" if form == "OpenAI file" else "pytorch_model.bin")
    if form == "bare pickle":
        file.write_bytes(pickle.dumps(payload))
    elif form == "shard":
        file = folder / "pytorch_model-00001-of-00001.bin"
        torch.save(payload, file)
        index = {"weight_map": dict.fromkeys(tensors, file.name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        content = {**tensors, "extra": payload} if form == "beside the weights" else payload
        torch.save(content, file, _use_new_zipfile_serialization=form != "old")
    if form == "OpenAI file":
        (folder / "config.json").unlink()
    assert_refused(folder, file.name, "holds Python objects or code, which are never run")
    for read in READERS:
        with pytest.raises(ValueError, match=r"never run|expected 'xlm-roberta' or 'altclip'"):
            read(folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(payload))  # the payload works where it is let
    assert (tmp_path / "ran").exists()


def header(content: Any) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


def entry(first: int, last: int, shape: list[int], kind: str = "F32") -> dict[str, Any]:
    return {"logit_scale": {"dtype": kind, "shape": shape, "data_offsets": [first, last]}}


SAFETENSORS: dict[str, Callable[[bytes], bytes]] = {
    "cut in the values": lambda whole: whole[:-1],
    "cut in the header": lambda whole: whole[:200],
    "cut in the length": lambda whole: whole[:5],
    "garbage": lambda _: bytes(range(7, 256)) * 4,
    "garbage in the header": lambda _: header(b"\xff{{{ not JSON"),
    "header is a list": lambda _: header([1, 2]),
    "header of 2**63 bytes": lambda whole: struct.pack("<Q", 2**63) + whole[8:],
    "header of 2**40 bytes": lambda whole: struct.pack("<Q", 2**40) + whole[8:],
    "header longer than the file": lambda whole: struct.pack("<Q", len(whole)) + whole[8:],
    "offsets beyond the file": lambda _: header(entry(0, 2**40, [2**38])) + bytes(16),
    "offsets backwards": lambda _: header(entry(8, 4, [1])) + bytes(16),
    "shape that is not its bytes": lambda _: header(entry(0, 4, [10**9])) + bytes(4),
    "shape whose product overflows": lambda _: header(entry(0, 4, [2**33, 2**33])) + bytes(4),
    "unknown type": lambda _: header(entry(0, 4, [1], kind="F33")) + bytes(4),
    "bytes after the values": lambda whole: whole + b"more",
    "zeros": lambda _: bytes(1000),
    "a web page": lambda _: b"<!doctype html><html>Sign in to download</html>" * 10,
}


@pytest.mark.parametrize("damage", SAFETENSORS)
def test_damaged_safetensors_is_named(damage: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(SAFETENSORS[damage](file.read_bytes()))
    assert_refused(folder, file.name, "is damaged or no safetensors file .*: download it again$")


@pytest.mark.parametrize("damage", ["cut", "garbage", "web page", "list", "number", "numbers as names", "sparse"])
def test_damaged_pickle_is_named(damage: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    contents = {
        "list": [torch.zeros(2)],
        "number": 3,
        "numbers as names": {3: torch.zeros(2)},
        "sparse": {"logit_scale": torch.zeros(2, 2).to_sparse()},
    }
    torch.save(contents.get(damage, {"logit_scale": torch.zeros(1000)}), file)
    raw = {"cut": file.read_bytes()[:-900], "garbage": b"\x80\x02garbage." * 9, "web page": b"<html>no</html>"}
    if damage in raw:
        file.write_bytes(raw[damage])
    assert_refused(folder, file.name, r"cannot be read as plain tensors|expected names and their|is a sparse")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3460\n",
            "Git LFS pointer.*git lfs pull",
        ),
    ],
)
def test_stand_in_for_the_weights_is_named(name: str, content: bytes, message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert_refused(folder, name, message)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_all_listed(kind: torch.dtype, folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(kind) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        load_model(folder)
    first, *rest = str(caught.value).splitlines()
    assert "do not fit" in first
    assert sorted(rest) == sorted(f"  type of {name}: found {kind}, expected a floating-point type" for name in tensors)


def test_huge_shape_out_of_few_bytes_is_listed_and_not_allocated(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["text_projection.weight"] = torch.zeros(1).expand(10**6, 10**6)  # 4 bytes that claim to be 4 TB
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"shape of text_projection\.weight: found \(1000000, 1000000\), expected"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('{"weight_map": {"a": "../clip2/x.safetensors"}}', ValueError, r"names '\.\./clip2/x\.safetensors', expected"),
        ('{"weight_map": {"a": "/etc/passwd"}}', ValueError, "names '/etc/passwd', expected names of files beside it"),
        ('{"weight_map": {"a": "part/x.bin"}}', ValueError, r"names 'part/x\.bin', expected"),
        ('{"weight_map": {"a": ".."}}', FileNotFoundError, r"missing: \.\."),
        (
            '{"weight_map": {"a": "x-1.bin", "b": "x-2.bin"}}',
            FileNotFoundError,
            r"missing: x-1\.bin, x-2\.bin",
        ),
        ('{"weight_map": {"a": 5}}', ValueError, "is no index of weight files"),
        ('{"weight_map": {"a": ["x"]}}', ValueError, "is no index of weight files"),
        ('{"weight_map": {"a": "\\u0000"}}', (ValueError, FileNotFoundError), "index"),
        ('{"weight_map": {}}', ValueError, "names no files"),
        ('{"weight_map": "x"}', ValueError, "is no index of weight files"),
        ('{"metadata": {}}', ValueError, "is no index of weight files"),
        ("[]", ValueError, "is no index of weight files"),
        ("not JSON", ValueError, "is no index of weight files"),
        ("[" * 100_000, ValueError, "is no index of weight files"),
        ("\udcff", ValueError, "is no index of weight files"),
    ],
)
def test_index_that_leads_astray_is_named(content: str, kind: Any, message: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert_refused(folder, index.name, message, kind)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_broken_link_is_named(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to(folder / "blobs" / "gone")
    assert_refused(folder, name, "is a link that leads nowhere: download the file again", FileNotFoundError)


def test_broken_link_of_the_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "gone")
    assert_refused(folder, "config.json", "is a link that leads nowhere", FileNotFoundError)


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000 is above 1000"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000 is above 100000"),
        ({"intermediate_size": 10**30}, "intermediate_size=10+ is above"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1 must be an integer of at least 1"),
        ({"hidden_size": 1e3}, r"hidden_size=1000\.0 must be an integer"),
        ({"hidden_size": "10"}, "hidden_size='10' must be an integer"),
        ({"hidden_size": [10]}, r"hidden_size=\[10\] must be an integer"),
        ({"num_attention_heads": True}, "num_attention_heads=True must be an integer"),
        ({"hidden_act": {"a": 1}}, "hidden_act=.* is unknown"),
        ({"layer_norm_eps": None, "initializer_range": "x"}, "initializer_range='x' must be a number"),
        ({"layer_norm_eps": -1}, "layer_norm_eps=-1 must be above 0"),
    ],
)
def test_absurd_size_in_the_configuration_is_named(
    tower: str, change: dict[str, Any], message: str, folder: Path
) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content[tower] |= change
    file.write_text(json.dumps(content))
    assert_refused(folder, file.name, message)


def test_large_configuration_that_the_weights_do_not_have_is_refused_before_it_is_built(folder: Path) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["text_config"] |= {"hidden_size": 100_000, "intermediate_size": 400_000, "vocab_size": 10_000_000}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"token_embedding\.weight: found \(37, 10\), expected \(10000000, 100000\)"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ("[1]", "holds a list, expected a JSON object"),
        ('{"model_type": "clip", "text_config": "big"}', "text_config is a str, expected the fields of a tower"),
        ('{"model_type": "clip", "projection_dim": 1e9}', "projection_dim=1000000000.0 must be an integer"),
    ],
)
def test_configuration_that_is_none_is_named(content: str, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert_refused(folder, "config.json", message)

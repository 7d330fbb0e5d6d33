"""Hub ids: what is fetched and what is not, local directories first, and errors that say what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altclip_train.hub import WEIGHT_FILES, local_directory
from altclip_train.models import AltCLIPConfig, AltCLIPModel, CLIPModel, load_model
from tests.tiny_models import tiny_altclip, tiny_clip
from tests.weight_spellings import assert_same


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

"""The demo in a real browser, on starter pictures and a model that knows them."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from altclip_train.data.samples import decode_captions, decode_image, is_image_text_field
from altclip_train.data.shards import ShardReader
from tests.workspace import Workspace, environment

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

SHARD = "image_texts/singles/train/000000.tar"
PICTURES = 12


@pytest.fixture(scope="module")
def shard(workspace: Workspace) -> Path:
    return workspace.first_samples(SHARD, PICTURES)


@pytest.fixture(scope="module")
def model(workspace: Workspace, shard: Path) -> Path:
    """A CLIP with a Chinese text tower that has learnt these pictures by heart."""
    taught = workspace.train("stage=teacher", "trainer.max_steps=2")
    run = workspace.train(
        "stage=contrastive",
        f"start={taught.model}",
        f"data.image_texts=[{{urls: {shard}}}]",
        "data.languages=[zh,en]",
        f"data.global_batch_size={PICTURES}",
        "stage.locked=[]",
        "stage.optimizer.lr=5e-3",
        "stage.weight_decay=0",
        "trainer.max_epochs=-1",
        "trainer.max_steps=250",
        "trainer.log_every_n_steps=50",
        directory=workspace.root / "outputs" / "contrastive" / "2026-01-01_12-00-00",
    )
    return run.directory


class Sample(NamedTuple):
    key: str
    captions: dict[str, list[str]]
    picture: bytes

    @property
    def concept(self) -> str:
        """Several pictures show the same: the noun that ends every English caption."""
        return self.captions["en"][0].split()[-1]


@pytest.fixture(scope="module")
def samples(shard: Path) -> list[Sample]:
    reader = ShardReader([shard], wanted=is_image_text_field)
    found = []
    for number in range(reader.counts[0]):
        members = reader.read(0, number)
        picture = io.BytesIO()
        decode_image(members).convert("RGB").save(picture, "PNG")
        captions = decode_captions(members, default_language="en")
        found.append(Sample(reader.key(0, number), captions, picture.getvalue()))
    assert len({sample.concept for sample in found}) >= 4
    return found


@pytest.fixture(scope="module")
def address(workspace: Workspace, model: Path, shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real command, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = tmp_path_factory.mktemp("cache")
    arguments = [model.relative_to(workspace.root), "--images", shard.relative_to(workspace.root), "--port", port]
    command = [sys.executable, "-m", "altclip_train.cli", "demo", *map(str, arguments)]
    place = {**environment(), "XDG_CACHE_HOME": str(cache), "PYTHONWARNINGS": "ignore"}
    with (cache / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=workspace.root, env=place, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/", process, cache / "log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)
    assert list((cache / "altclip_train" / "demo").glob("*/part-*.npy"))


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_chinese_query_finds_its_picture_first(visit, address: str, samples: list[Sample]):
    seen = visit(address)
    for wanted in (samples[0], samples[-1]):
        right = [sample.key for sample in samples if sample.concept == wanted.concept]
        seen.page.locator("#query textarea, #query input").first.fill(wanted.captions["zh"][0])
        seen.page.locator("#search").click()
        seen.page.wait_for_function(
            "keys => keys.some(key => document.querySelector('#found .caption-label')?.innerText.includes(key))",
            arg=right,
        )
    seen.page.wait_for_function("() => [...document.querySelectorAll('#found img')].every(one => one.naturalWidth)")
    assert seen.errors == []
    seen.picture("demo")


def test_a_query_without_words_gets_a_message(visit, address: str):
    seen = visit(address)
    seen.page.locator("#search").click()
    seen.page.get_by_text("Type what to search for").wait_for()


def test_an_upload_is_classified_by_labels_in_any_language(visit, address: str, samples: list[Sample], tmp_path: Path):
    wanted = samples[3]
    others = {one.concept: one.captions["zh"][0] for one in samples if one.concept != wanted.concept}
    file = tmp_path / f"{wanted.key}.png"
    file.write_bytes(wanted.picture)
    seen = visit(address)
    seen.page.get_by_role("tab", name="Name a picture").click()
    seen.page.locator("#classify-file input[type=file]").set_input_files(str(file))
    seen.page.locator("#classify-preview img").wait_for()
    seen.page.locator("#labels textarea").fill("\n".join([*others.values(), wanted.captions["zh"][0]]))
    seen.page.locator("#classify").click()
    best = seen.page.locator("#probabilities h2, #probabilities .output-class").first
    best.wait_for()
    assert best.inner_text().strip() == wanted.captions["zh"][0]
    assert seen.errors == []


def test_a_file_that_is_no_picture_and_a_lonely_label_get_messages(visit, address: str, tmp_path: Path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    seen = visit(address)
    seen.page.get_by_role("tab", name="Name a picture").click()
    seen.page.locator("#classify").click()
    seen.page.get_by_text("Choose a picture first").wait_for()
    seen.page.locator("#classify-file input[type=file]").set_input_files(str(file))
    seen.page.get_by_text("neither JPEG, PNG nor WebP").first.wait_for()
    seen.page.locator("#labels textarea").fill("一只猫")
    seen.page.locator("#classify").click()
    seen.page.get_by_text("Give at least two labels").wait_for()


def test_a_picture_is_described_by_captions_of_its_kind(visit, address: str, samples: list[Sample], tmp_path: Path):
    wanted = samples[5]
    file = tmp_path / "picture.png"
    file.write_bytes(wanted.picture)
    seen = visit(address)
    seen.page.get_by_role("tab", name="Describe a picture").click()
    seen.page.locator("#describe-file input[type=file]").set_input_files(str(file))
    seen.page.locator("#describe-preview img").wait_for()
    seen.page.locator("#describe").click()
    seen.page.wait_for_function("() => /\\d\\.\\d\\d\\d/.test(document.querySelector('#texts').innerText)")
    words = seen.page.locator("#texts").inner_text().splitlines()
    same = [one for one in samples if one.concept == wanted.concept]
    right = {text for one in same for texts in one.captions.values() for text in texts}
    known = {text for one in samples for texts in one.captions.values() for text in texts}
    first = next(word.strip() for word in words if word.strip() in known)
    assert first in right
    assert seen.errors == []


def test_the_page_needs_no_other_machine(address: str):
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert "fonts.googleapis.com" not in page

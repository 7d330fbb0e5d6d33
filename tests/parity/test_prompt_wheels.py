"""Names and templates in the pinned wheels: what protocols promise of them, checked where PROMPT_WHEELS names a folder.

pip download --no-deps -d DIR clip-benchmark==1.6.2 open-clip-torch==3.3.0
"""

from __future__ import annotations

import ast
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from altclip_train.evaluation import ZeroShotBenchmark
from altclip_train.evaluation.known_benchmarks import IMAGENETS, KNOWN, PROMPT_DIGESTS
from altclip_train.evaluation.protocols import KnownBenchmark
from altclip_train.evaluation.readers.prompts import Entry, PromptFiles, cache_folder
from altclip_train.evaluation.zero_shot_benchmark import class_folder_names, prompts_and_classes
from tests.benchmark_folders import write_synsets

pytestmark = pytest.mark.parity
WHEELS = os.environ.get("PROMPT_WHEELS")


@pytest.fixture(scope="module")
def files() -> Iterator[PromptFiles]:
    if WHEELS is None:
        pytest.skip("PROMPT_WHEELS names no folder with the wheels")
    found = PromptFiles([WHEELS], PROMPT_DIGESTS)
    yield found
    assert not found.changed


def in_wheel(known: KnownBenchmark) -> Iterator[tuple[str, str]]:
    """Protocols and languages whose prompts the wheel has."""
    for protocol in known.protocols:
        for language, source in protocol.prompts.items():
            if "/" in source.class_names.file:
                yield protocol.id, language


@pytest.mark.parametrize("known", IMAGENETS, ids=lambda known: known.name)
def test_imagenets_have_as_many_names_as_classes(files: PromptFiles, known: KnownBenchmark) -> None:
    for wanted, language in in_wheel(known):
        protocol = known.protocol(language, wanted)
        prompts, classes = prompts_and_classes(known, protocol, language, files)
        assert len(prompts.class_names) == protocol.counts["classes"]
        assert classes is None
        assert all("{c}" in template for template in prompts.templates)
    assert len(class_folder_names(known, files)) == known.protocols[0].counts["classes"]


@pytest.mark.parametrize(
    ("language", "templates", "distinct", "repeated"),
    [("en", 80, 80, 2), ("zh", 80, 78, 1), ("it", 49, 46, 20), ("ja", 37, 37, 9), ("ar", 55, 55, 4)],
)
def test_counts_that_the_documents_state(
    files: PromptFiles, language: str, templates: int, distinct: int, repeated: int
) -> None:
    known = KNOWN["imagenet"]
    prompts, _ = prompts_and_classes(known, known.protocol(language, None), language, files)
    assert (len(prompts.templates), len(set(prompts.templates))) == (templates, distinct)
    assert 1000 - len(set(prompts.class_names)) == repeated


def test_babel_imagenet_has_the_languages_of_its_file_that_have_templates(files: PromptFiles) -> None:
    known = KNOWN["babel_imagenet"]
    (protocol,) = known.protocols
    names = files.read(Entry("clip_benchmark/datasets/babel_imagenet.json"))
    templates = files.read(Entry("clip_benchmark/datasets/nllb_dist13b_prompts.json"))
    assert sorted(protocol.languages) == sorted(code.lower() for code in names.keys() & templates.keys())
    counts = {}
    for language in protocol.languages:
        prompts, classes = prompts_and_classes(known, protocol, language, files)
        assert classes is not None
        assert len(prompts.class_names) == len(set(classes)) == len(classes)
        assert set(classes) <= set(range(1000))
        counts[language] = len(classes)
    assert (counts["zh"], counts["en"], counts["ar"], counts["ja"]) == (885, 1000, 636, 733)


def test_english_prompts_are_those_of_open_clip(files: PromptFiles) -> None:
    (wheel,) = Path(WHEELS or "").glob("open_clip_torch-3.3.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read("open_clip/zero_shot_metadata.py"))
    lists: dict[str, Any] = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # pyright: ignore
    functions = lists["OPENAI_IMAGENET_TEMPLATES"].elts  # lambda c: f"a photo of a {c}."
    templates = [
        "".join(
            getattr(part, "value", "{c}") if isinstance(part, ast.Constant) else "{c}" for part in function.body.values
        )
        for function in functions
    ]
    known = KNOWN["imagenet"]
    prompts, _ = prompts_and_classes(known, known.protocol("en", None), "en", files)
    assert prompts.templates == templates
    assert prompts.class_names == list(ast.literal_eval(lists["IMAGENET_CLASSNAMES"]))


def test_a_whole_imagenet_of_folders_is_read_by_its_protocol(
    files: PromptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many synsets and pictures as ImageNet-A has, in the folder that the command looks in by default."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_folder().parent.mkdir(parents=True)
    cache_folder().symlink_to(Path(WHEELS or "").resolve())
    known = KNOWN["imagenet_a"]
    synsets = class_folder_names(known, files)
    shares = [7500 // 200 + (number < 7500 % 200) for number in range(200)]
    write_synsets(
        tmp_path / "imagenet-a",
        {name: [f"{n}.jpg" for n in range(share)] for name, share in zip(synsets, shares, strict=True)},
    )
    benchmark = ZeroShotBenchmark(root=tmp_path, name="imagenet_a", language=["en", "zh"])
    benchmark.prepare()
    assert [benchmark.result_protocol(language) for language in ("en", "zh")] == ["openai", "wukong"]
    assert benchmark.counts("zh") == {"images": 7500, "classes": 200}
    assert benchmark.prompts["en"].class_names[:3] == ["stingray", "goldfinch", "junco"]

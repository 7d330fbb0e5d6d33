"""Commands and code of the README and the guides run as they stand there, on tiny data in place of what they name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.workspace import REPOSITORY, TINY_TEACHER, Workspace, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each block is several whole commands

README, GUIDES = ((REPOSITORY / page).read_text(encoding="utf-8") for page in ("README.md", "docs/guides.md"))
BLOCKS = re.findall(r"^(<!-- command: \w+ -->\n)?```bash\n(.*?)^```$", README + GUIDES, re.DOTALL | re.MULTILINE)
# The two marked ones install and train, and test: `.ci/run` runs them in a clean clone. A synopsis has choices.
COMMANDS = [text for marked, text in BLOCKS if not marked and "|" not in text]
DROP_IN, STABLE_DIFFUSION = re.findall(r"^```python\n(.*?)^```$", README + GUIDES, re.DOTALL | re.MULTILINE)

# What the README names, and what lies there in this test; a name may only be taken away by pages that lack it.
NAMES = {
    "/models/clip-vit-large-patch14": "data/starter_clip",
    "/models/xlm-roberta-large": "student",
    "/models/AltCLIP": "student",
    "/data/en-ja/*.tar": "a/*.tar",
    "/data/en-zh/*.tar": "b/*.tar",
    "/data/products/*.tar": "shards/*.tar",
    "/data/parallel/{000000..000999}.tar": "a/*.tar",
    "/data/wudaomm/*.tar": "shards/*.tar",
    "/data/laion/*.tar": "shards/*.tar",
    "trainer.devices=8": "trainer.devices=1",
    "clip=DIR": "clip=data/starter_clip",
    "student=DIR": "student=student",
    "b/{000..099}.tar": "b/{000..001}.tar",
    "embed CLIP": "embed data/starter_clip",
    "MODEL": "student",
    "root=DIR": "root=data/starter/eval/starter_retrieval",
}


@pytest.fixture(scope="module")
def place(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with tiny data in which stage one has run; its model is a student, and its pictures are photos."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("train.py", "configs"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "data").mkdir()
    (root / "data" / "starter").symlink_to(workspace.starter)
    shutil.copytree(workspace.clip, root / "data" / "starter_clip")
    run = workspace.train("stage=teacher", directory=root / "outputs" / "teacher" / "2020-01-01_00-00-00")
    shutil.copytree(run.model, root / "student")
    texts = workspace.first_samples("parallel_texts/train/000000.tar", 12)
    for name in ("a/0.tar", "b/000.tar", "b/001.tar"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(texts, root / name)
    (root / "shards").mkdir()
    shutil.copy(workspace.first_samples("image_texts/singles/train/000000.tar", 12), root / "shards")
    (root / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 90, 200)).save(root / "photos" / f"{number}.png")
    return root


def run(text: str, place: Path, workspace: Workspace) -> str:
    """Run a block in bash, training for two steps on the tiny model; returns what it prints."""
    for name, here in NAMES.items():
        text = text.replace(name, here)
    own = ("clip=", "starter=", "outputs=", "eval=", "trainer.devices=")
    tiny = [one for one in workspace.overrides("trainer.max_steps=2") if not one.startswith(own)]
    text = text.replace("python train.py", f"python train.py {shlex.join(tiny)}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=place,
        env={**environment(), "HOME": str(place), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_block_is_known_and_every_name_is_used() -> None:
    assert len(COMMANDS) >= 10
    text = "".join(COMMANDS)
    assert [name for name in NAMES if name not in text] == []


@pytest.mark.parametrize("text", COMMANDS, ids=lambda text: re.sub(r"\W+", "_", text[:40]))
def test_commands_run(text: str, place: Path, workspace: Workspace) -> None:
    run(text, place, workspace)


def test_drop_in_example_runs(place: Path) -> None:
    names = {"directory": place / "student", "image": Image.open(place / "photos" / "1.png")}
    with torch.no_grad():
        exec(DROP_IN, names)
    probabilities = names["probs"]
    assert isinstance(probabilities, torch.Tensor)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    assert probabilities.shape == (1, 2)


def test_states_for_stable_diffusion_are_those_of_every_token(place: Path) -> None:
    names = {"directory": place / "student"}
    with torch.no_grad():
        exec(STABLE_DIFFUSION, names)
    assert names["states"].shape == (1, 77, TINY_TEACHER["hidden_size"])

"""Imports only go down the layers, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "altclip_train"

# Lower numbers may not import higher ones; equal numbers only within one folder.
LAYERS = {
    "types": 0,
    "configuration": 0,
    "errors": 0,
    "files": 0,
    "heap": 0,
    "html": 0,
    "hub": 0,
    "locks": 0,
    "markdown": 0,
    "command": 1,
    "checks": 5,
    "distributed": 1,
    "losses": 2,
    "adamw": 2,
    "muon": 3,
    "models": 3,
    "processing": 3,
    "data": 4,
    "optim": 4,
    "sharding": 4,
    "evaluation": 5,
    "stages": 6,
    "model_card": 6,
    "training": 7,
    "evaluate": 8,
    "report": 8,
    "export": 8,
    "trimming": 9,
    "embedding": 9,
    "demo": 10,
    "cli": 11,
}
# The one place that may import them: models of other libraries are evaluated, when someone asks for that.
OTHER_MODELS = "evaluation/other_models.py"
FORBIDDEN = {
    "models": {"lightning", "hydra", "omegaconf", "wandb", "transformers", "webdataset", "PIL", "numpy"},
    "losses": {"lightning", "hydra", "omegaconf", "wandb", "transformers"},
    "processing": {"lightning", "hydra", "omegaconf", "wandb", "transformers", "webdataset"},
    "data": {"hydra", "omegaconf", "wandb", "transformers"},
    "evaluation": {"hydra", "omegaconf", "wandb", "transformers", "webdataset"},
    "stages": {"hydra", "omegaconf", "wandb", "transformers", "webdataset", "PIL"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "altclip_train":  # from altclip_train import distributed
                yield from (f"altclip_train.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if unit != "__init__":
            yield path, unit


def test_every_module_has_a_layer():
    assert {unit for _, unit in modules()} <= set(LAYERS)


def test_imports_only_go_down():
    wrong = []
    for path, unit in modules():
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "altclip_train" and len(parts) > 1 and parts[1] != unit and LAYERS[parts[1]] >= LAYERS[unit]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_core_layers_do_not_know_the_frameworks():
    wrong = []
    for path, unit in modules():
        for name in imports_of(path):
            if str(path.relative_to(PACKAGE)) == OTHER_MODELS and name == "transformers":
                continue
            if name.split(".")[0] in FORBIDDEN.get(unit, set()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_models_of_other_libraries_are_imported_when_they_are_asked_for():
    tree = ast.parse((PACKAGE / OTHER_MODELS).read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {alias.name for node in at_import for alias in node.names} | {getattr(n, "module", "") for n in at_import}
    assert not named & {"transformers", "open_clip"}


HEAVY = {"lightning", "hydra", "transformers", "wandb", "webdataset"}


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("import altclip_train; altclip_train.AltCLIPModel", HEAVY),
        # Loader processes; the models would bring torch._dynamo, which takes as long to import as torch.
        ("import altclip_train.data.dataset", HEAVY | {"altclip_train.models", "torch._dynamo", "sympy"}),
        ("from altclip_train.cli import main", HEAVY | {"torch", "PIL", "rich"}),  # --help answers at once
        ("import train", HEAVY - {"hydra"} | {"torch"}),  # loader processes import it too; --cfg answers at once
    ],
)
def test_importing_stays_light(imports: str, heavy: set[str]):
    script = f"import sys; {imports}; sys.exit(', '.join(sorted({heavy!r} & set(sys.modules))) or 0)"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{imports} pulls in {result.stderr}"

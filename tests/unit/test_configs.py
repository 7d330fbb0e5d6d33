"""Every shipped configuration composes, fits its constructors and is used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from altclip_train.configuration import check_configuration
from altclip_train.training.resolvers import register_resolvers

CONFIGS = Path(__file__).parents[2] / "configs"


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def composed(name: str, *overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = "/runs/one"
    HydraConfig.instance().set_config(config)
    config = config.copy()
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config


def checked(config: DictConfig) -> dict:
    """The plain configuration, after the check that a run begins with."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_configuration(plain)
    assert isinstance(plain, dict)
    return plain


# What an experiment leaves to the command line.
OPEN = {
    "altclip_m9": ["clip=/clip", "student=/altclip", "data.parallel_texts=[{urls: a.tar}]"],
    "altclip_teacher": ["clip=/clip", "student=/xlmr", "data.parallel_texts=[{urls: a.tar}]"],
    "altclip_contrastive": ["start=/model", "data.image_texts=[{urls: a.tar}]"],
    "starter_clip": ["stage=contrastive"],
}
STAGES = {"altclip_teacher": "TeacherLearning", "altclip_m9": "TeacherLearning"}


@pytest.mark.parametrize("logger", names("logger"))
@pytest.mark.parametrize("model", names("model"))
@pytest.mark.parametrize("stage", names("stage"))
def test_every_stage_with_every_model_and_logger(stage: str, model: str, logger: str):
    config = checked(composed("train", f"stage={stage}", f"model={model}", f"logger={logger}", "start=/model"))
    assert config["name"] == stage
    assert config["seed"] == config["data"]["seed"]
    assert "csv" in config["logger"]


@pytest.mark.parametrize("callbacks", names("callbacks"))
def test_every_set_of_callbacks(callbacks: str):
    assert "checkpoints" in checked(composed("train", "stage=teacher", f"callbacks={callbacks}"))["callbacks"]


@pytest.mark.parametrize("stage", names("stage"))
@pytest.mark.parametrize("strategy", names("strategy"))
def test_every_strategy_goes_with_every_stage(stage: str, strategy: str):
    trainer = checked(composed("train", f"stage={stage}", f"strategy={strategy}", "start=/model"))["trainer"]
    assert trainer["max_epochs"] > 0  # the stage's own
    if isinstance(trainer["strategy"], dict):
        assert trainer["strategy"]["precision"] == trainer["precision"]


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_experiment_alone_and_with_its_stage(experiment: str):
    alone = checked(composed("train", f"experiment={experiment}", *OPEN[experiment]))
    stage = STAGES.get(experiment, "ContrastiveLearning")
    assert alone["stage"]["_target_"] == f"altclip_train.stages.{stage}"
    assert alone["name"] == experiment


@pytest.mark.parametrize("benchmark", names("eval"))
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_every_benchmark_in_training_and_in_the_evaluation(name: str, benchmark: str):
    given = [f"eval.{benchmark}.root=/data", f"eval.{benchmark}.language=zh", "checkpoint=/model"]
    stage = ["stage=teacher"] if name == "train" else []
    overrides = given[: 3 if name == "evaluate" else 2]
    config = checked(composed(name, *stage, f"eval=[{benchmark}]", *overrides))
    assert list(config["eval"]) == [benchmark]
    assert config["eval"][benchmark]["name"] == benchmark


def test_no_file_is_left_out():
    """Groups of one file are part of every composition; the other groups are gone through above."""
    gone_through = {"callbacks", "eval", "experiment", "logger", "model", "stage", "strategy"}
    for group in (path.name for path in CONFIGS.iterdir() if path.is_dir()):
        per_stage = set(names(group)) - {"default"} == set(names("stage"))
        assert group in gone_through or len(names(group)) == 1 or per_stage, group
    assert sorted(path.name for path in CONFIGS.glob("*.yaml")) == ["evaluate.yaml", "train.yaml"]
    assert set(OPEN) == set(names("experiment"))


def test_every_top_level_key_is_used():
    sources = [*CONFIGS.rglob("*.yaml"), CONFIGS.parent / "train.py", *(CONFIGS.parent / "altclip_train").rglob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources)
    for name, overrides in (("train", ["stage=teacher"]), ("evaluate", [])):
        for key in composed(name, *overrides):
            used = rf"\$\{{{key}[}}.]|\$\{{\w+:[^}}]*\$\{{{key}\}}|config\.{key}\b"
            assert re.search(used, text), f"{name}.yaml: {key} is used nowhere"


def test_every_key_of_a_model_is_used_by_a_stage_or_an_experiment():
    text = "\n".join(file.read_text(encoding="utf-8") for file in CONFIGS.rglob("*.yaml"))
    for model in names("model"):
        for key in composed("train", "stage=teacher", f"model={model}").model:
            assert f"${{model.{key}" in text, f"model/{model}.yaml: {key} is used nowhere"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("stage.optimizer.lr", (1.0e-4, 2.0e-6)),
        ("data.global_batch_size", (1024, 1024)),
        ("data.max_length", (75, 77)),
        ("stage.weight_decay", (0.2, 0.05)),
    ],
)
def test_paper_experiments_keep_the_paper_values_for_any_model(key: str, values: tuple[float, float]):
    for experiment, value in zip(("altclip_teacher", "altclip_contrastive"), values, strict=True):
        config = composed("train", f"experiment={experiment}", *OPEN[experiment], "model=vitb32_xlmr_base")
        assert OmegaConf.select(config, key) == value


def test_stage_two_of_the_paper_locks_the_image_tower_and_takes_pairs_alone():
    stage = composed("train", "experiment=altclip_contrastive", *OPEN["altclip_contrastive"]).stage
    assert list(stage.locked) == ["vision_model", "visual_projection"]
    assert stage.positives == "pairs"


def test_students_have_no_dropout():
    for model in names("model"):
        text = composed("train", "stage=teacher", f"model={model}").model.text
        assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0, 0)


def test_data_of_stage_two_is_not_augmented_by_default():
    assert composed("train", "stage=contrastive", "start=/model").data.augment is None


@pytest.mark.parametrize(
    ("student", "target", "lr"),
    [("null", "altclip_train.muon.Muon", 2.5e-3), ("/xlmr", "altclip_train.adamw.AdamW", 1.0e-4)],
)
def test_optimizer_of_stage_one_follows_from_what_the_student_starts_from(student: str, target: str, lr: float):
    optimizer = checked(composed("train", "stage=teacher", f"student={student}"))["stage"]["optimizer"]
    assert (optimizer["_target_"], optimizer["lr"]) == (target, lr)

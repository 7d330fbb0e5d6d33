"""What there is to choose, a copy of it to change, and a look at a training before it starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from altclip_train.cli import configs, main
from altclip_train.report.dry_run import StepTimer, dry_run, optimizer_bytes, saved_bytes
from altclip_train.report.record import parameter_counts
from tests.workspace import REPOSITORY, Workspace


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of configurations that may be written to."""
    for group in configs.GROUPS:
        (tmp_path / "configs" / group).mkdir(parents=True)
        for file in (REPOSITORY / "configs" / group).glob("*.yaml"):
            (tmp_path / "configs" / group / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "configs")
    return tmp_path / "configs"


def test_every_choice_is_listed_with_a_line_about_it(capsys: pytest.CaptureFixture[str]):
    main(["ls"])
    listed = capsys.readouterr().out
    for group in configs.GROUPS:
        for file in (REPOSITORY / "configs" / group).glob("*.yaml"):
            line = re.search(rf"^  {file.stem} +(.*)$", listed, re.MULTILINE)
            assert line, file
            assert len(line[1]) > 10, f"{file} begins with no line about it"
            assert not line[1].startswith(("@", "python"))


def test_one_kind_is_listed_and_a_mistyped_one_has_a_hint(capsys: pytest.CaptureFixture[str]):
    main(["ls", "experiment"])
    listed = capsys.readouterr().out
    assert listed.startswith("experiments: whole recipes (experiment=NAME)\n")
    assert "altclip_teacher" in listed
    assert "starter_retrieval" not in listed
    with pytest.raises(SystemExit, match=r"did you mean 'experiment'\?"):
        main(["ls", "experiments"])


def test_a_copy_lies_beside_the_original_and_is_chosen_by_its_name(
    own_configs: Path, capsys: pytest.CaptureFixture[str]
):
    main(["cp", "altclip_teacher", "my.yaml"])
    copy = own_configs / "experiment" / "my.yaml"
    assert copy.read_bytes() == (own_configs / "experiment" / "altclip_teacher.yaml").read_bytes()
    assert "use it: python train.py experiment=my\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"my\.yaml is there already"):
        main(["cp", "altclip_teacher", "my.yaml"])


def test_a_copy_elsewhere_is_found_by_hydra(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "mine" / "model" / "small.yaml"
    main(["cp", "model/starter", str(target)])
    target.write_text(target.read_text().replace("projection_dim: 256", "projection_dim: 32"))
    (_, command) = capsys.readouterr().out.splitlines()
    assert command == f"use it: python train.py --config-dir {tmp_path}/mine model=small"
    words = command.partition("train.py ")[2].split()
    python, script, *overrides = workspace.command("stage=teacher")
    done = subprocess.run(
        [python, script, *words, *overrides, "--cfg", "job", "--package", "model"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "projection_dim: 32" in done.stdout


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("altclip_techer", "my.yaml", "did you mean 'experiment/altclip_teacher'?"),
        ("altclip_teacher", "my", "expected a name that ends in .yaml"),
        ("altclip_teacher", "elsewhere/my.yaml", "in a folder experiment/"),
    ],
)
def test_a_copy_that_hydra_could_not_find_is_refused(own_configs: Path, name: str, target: str, message: str):
    before = sorted(own_configs.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        main(["cp", name, target])
    assert message in str(exit_.value.code)
    assert sorted(own_configs.rglob("*")) == before


@pytest.mark.parametrize("stage", ["teacher", "contrastive"])
def test_a_dry_run_says_what_training_would_be_and_writes_nothing(
    workspace: Workspace, stage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    start = [f"start={workspace.clip}"] if stage == "contrastive" else []
    directory = workspace.new_directory()
    config = workspace.compose(*workspace.overrides(f"stage={stage}", *start, "dry_run=true"), directory=directory)
    batch = workspace.data(f"stage={stage}", *start).train_set.__getitems__(range(8))  # this also indexes the shards
    before = sorted(workspace.root.rglob("*"))
    dry_run(config)
    assert sorted(workspace.root.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "global batch: 8 = 8 on each of 1 device(s)" in printed
    assert "steps: 4, " in printed
    frozen = "teacher" if stage == "teacher" else "vision_model"
    count = sum(
        one.numel()
        for one in workspace.stage(f"stage={stage}", *start)
        .get_submodule(frozen if stage == "teacher" else f"model.{frozen}")
        .parameters()
    )
    assert re.search(rf"{frozen} +│ +│ +{count:,} ", printed)
    assert all(key in printed for key in batch.keys)
    timed = re.search(r"time: 4 steps, about \d+ s at (\S+) s a step, measured here over 3 steps", printed)
    assert timed
    assert float(timed[1]) > 0
    assert re.search(r"peak of the first steps, the process with its libraries +│ +[1-9]", printed)


def test_a_dry_run_writes_no_embeddings_and_no_checkpoint(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    directory = workspace.new_directory()
    overrides = workspace.overrides("stage=teacher", "data.embeddings=fill", "trainer.max_steps=40")
    config = workspace.compose(*overrides, "callbacks.checkpoints.every_n_train_steps=1", directory=directory)
    workspace.data("stage=teacher")  # indexes the shards
    before = sorted(workspace.root.rglob("*"))
    dry_run(config)
    assert sorted(workspace.root.rglob("*")) == before
    printed = capsys.readouterr().out
    assert "time: 40 steps" in printed
    assert "over 3 steps" in printed
    assert "data.embeddings=fill: the steps after the first epoch are faster" in printed


def test_the_time_of_a_training_is_that_of_its_steps_but_the_first():
    timer = StepTimer()
    timer.times = [5.0, 5.5, 6.5, 7.25]
    assert timer.estimate(3120).startswith("time: 3,120 steps, about 39 min at 0.75 s a step, measured here over 3")
    assert "about 7.5 h at" in timer.estimate(36_000)
    timer.times = [5.0]
    assert timer.estimate(1) == "time: 1 steps are too few to be timed"


def test_the_optimizer_takes_what_the_dry_run_says(workspace: Workspace):
    for optimizer in ("altclip_train.muon.Muon", "torch.optim.AdamW"):
        overrides = ["stage=teacher", f"stage.optimizer._target_={optimizer}"]
        run = workspace.train(*overrides, "trainer.max_steps=2")
        (state,) = run.checkpoint(2)["optimizer_states"]
        kept = sum(
            value.numel() * value.element_size()
            for of_one in state["state"].values()
            for value in of_one.values()
            if torch.is_tensor(value) and value.numel() > 1
        )
        assert optimizer_bytes(workspace.stage(*overrides)) == kept


def test_what_is_kept_for_backward_grows_with_the_batch_and_is_little_for_what_is_locked(workspace: Workspace):
    overrides = ["stage=contrastive", f"start={workspace.clip}"]
    data = workspace.data(*overrides)
    locked, free = workspace.stage(*overrides), workspace.stage(*overrides, "stage.locked=[]")
    four, eight = (data.on_after_batch_transfer(data.train_set.__getitems__(range(n)), 0) for n in (4, 8))
    assert saved_bytes(free, eight) == pytest.approx(2 * saved_bytes(free, four), rel=0.25)
    assert saved_bytes(locked, eight) < 0.8 * saved_bytes(free, eight)


def test_dry_run_of_the_command_makes_no_run_directory(workspace: Workspace, tmp_path: Path):
    done = workspace.run_command("stage=teacher", "dry_run=true", f"outputs={tmp_path}/outputs")
    assert done.returncode == 0, done.stderr
    assert "memory of one device" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_parts_are_counted_once(workspace: Workspace):
    stage = workspace.stage("stage=teacher")
    counts = parameter_counts(stage)
    assert set(counts) == {"teacher", "student"}
    assert counts["teacher"]["trainable"] == counts["student"]["frozen"] == 0

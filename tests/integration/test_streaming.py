"""Training by streaming: what it needs, what it promises, and that it resumes."""

from __future__ import annotations

import json
import os

import pytest

from tests.workspace import BATCH, Workspace

TEXTS = "parallel_texts/train/000000.tar"


def streaming(workspace: Workspace, *more: str) -> list[str]:
    shard = workspace.first_samples(TEXTS, 40)
    return ["stage=teacher", "data.mode=streaming", f"data.parallel_texts=[{{urls: {shard}}}]", *more]


def test_run_trains_and_resumes(workspace: Workspace, capsys: pytest.CaptureFixture[str]):
    command = streaming(workspace, "data.val_texts=[]")
    run = workspace.train(*command, "trainer.max_steps=4")
    assert capsys.readouterr().out.count("data.mode=streaming promises less") == 1
    assert list(run.metrics("train/loss")) == [0, 1, 2, 3]
    resumed = workspace.train(*command, "trainer.max_steps=6", f"resume={run.directory}", directory=run.directory)
    assert list(resumed.metrics("train/loss")) == [0, 1, 2, 3, 4, 5]
    assert resumed.trainer.train_dataloader.dataset.begin == 4 * BATCH
    assert (run.directory / "model" / "model.safetensors").is_file()


def test_damaged_shard_is_listed_and_limited(workspace: Workspace):
    command = streaming(workspace, "data.val_texts=[]", "trainer.max_steps=20")
    shard = workspace.first_samples(TEXTS, 5)
    os.truncate(shard, 4 * 1024)
    command.append(f"data.parallel_texts=[{{urls: {shard}}}]")
    run = workspace.train(*command, "data.max_bad_fraction=1")
    (line,) = (run.directory / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "shard_damaged"
    assert run.metrics("data/skipped/shard_damaged")[19] >= 20
    with pytest.raises(ValueError, match=r"shard_damaged: .* such as .*the rest of it is lost"):
        workspace.train(*command, "data.max_bad_fraction=0.01")


def test_validation_stays_complete(workspace: Workspace):
    run = workspace.train(*streaming(workspace), "trainer.val_check_interval=2", "trainer.max_steps=4")
    assert list(run.metrics("val/other_cosine")) == [1, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mode=streaming", "trainer.max_steps=-1"], r"data\.mode=streaming has no end: set trainer\.max_steps"),
        (["data.mode=streaming", "data.epoch_samples=16"], r"data\.epoch_samples=16: data\.mode=streaming has no ep"),
        (["data.mode=streamed"], r"data\.mode='streamed': expected one of indexed, streaming"),
        (["data.allow_pipe=true"], r"data\.allow_pipe=true: .* only be read with data\.mode=streaming"),
        (["data.mode=streaming", "data.parallel_texts=[{urls: 'pipe:cat x'}]"], r"and data\.allow_pipe=true if you"),
    ],
)
def test_what_streaming_cannot_do_is_refused(workspace: Workspace, overrides: list[str], message: str):
    with pytest.raises(Exception, match=message):
        workspace.train("stage=teacher", *overrides)

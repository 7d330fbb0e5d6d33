"""From stage one over stage two to the evaluation: the weights and numbers that must not move."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from altclip_train.evaluate import evaluate
from altclip_train.evaluation import RetrievalBenchmark, write_results
from altclip_train.models import CLIPModel, load_model
from altclip_train.processing import AltCLIPProcessor
from tests.workspace import REPOSITORY, TrainedRun, Workspace, environment, run_command

TEXTS = ["a red apple", "两只猫在桌子上", "りんご", "a small dog to the left of a big tree"]


@pytest.fixture(scope="module")
def taught(workspace: Workspace) -> TrainedRun:
    # Evaluated after every step: the model that is written must not be the one of an earlier evaluation.
    return workspace.train("stage=teacher", "eval=[starter_retrieval]", "callbacks.benchmarks.every_n_steps=1")


@pytest.fixture(scope="module")
def tuned(workspace: Workspace, taught: TrainedRun) -> TrainedRun:
    return workspace.train("stage=contrastive", f"start={taught.model}")


def test_text_features_are_bit_equal_in_student_directory_and_stage_two(workspace: Workspace, taught: TrainedRun):
    tokens = AltCLIPProcessor.from_pretrained(taught.model).tokenizer.pack(TEXTS, 77)
    with torch.no_grad():
        student = taught.stage.student.eval().encode_packed(tokens)
        projection = CLIPModel.from_pretrained(workspace.clip).text_projection
        expected = projection(student)
        directory = load_model(taught.model).encode_text(tokens)
        stage = workspace.stage("stage=contrastive", f"start={taught.model}")
        assert torch.equal(directory, expected)
        assert torch.equal(stage.model.encode_text(tokens), expected)


def test_all_but_the_text_tower_is_bit_equal_to_the_clip(workspace: Workspace, taught: TrainedRun):
    clip, assembled = CLIPModel.from_pretrained(workspace.clip).state_dict(), load_model(taught.model).state_dict()
    kept = {name for name in clip if not name.startswith("text_model.")}
    assert kept == {name for name in assembled if not name.startswith("text_model.")}
    assert {"logit_scale", "text_projection.weight", "visual_projection.weight"} < kept
    for name in kept:
        assert torch.equal(clip[name], assembled[name]), name


def test_both_stages_and_the_evaluation_in_english_and_chinese(workspace: Workspace, tuned: TrainedRun):
    root = workspace.starter / "eval/starter_retrieval"
    benchmark = RetrievalBenchmark(root=root, language=["en", "zh"], name="starter_retrieval")
    results = evaluate(checkpoint=tuned.model, benchmarks={"r": benchmark}, batch_size=4, device="cpu")
    file = write_results(tuned.directory / "results.json", tuned.model, results)
    entries = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [(entry["benchmark"], entry["language"]) for entry in entries] == [
        ("starter_retrieval", "en"),
        ("starter_retrieval", "zh"),
    ]
    assert all(entry["counts"]["images"] == 6 for entry in entries)
    assert all(0 <= entry["metrics"]["mean_recall"] <= 1 for entry in entries)


def test_results_at_the_end_of_training_equal_those_of_the_written_model(workspace: Workspace, taught: TrainedRun):
    run = workspace.train(
        "stage=contrastive", f"start={taught.model}", "eval=[starter_retrieval]", "starter_split=test"
    )
    root = workspace.starter / "eval/starter_retrieval"
    benchmark = RetrievalBenchmark(root=root, language=["en", "zh", "ja"])
    for result in evaluate(checkpoint=run.model, benchmarks={"r": benchmark}, batch_size=4, device="cpu"):
        for metric, value in result.metrics.items():
            assert run.metrics(f"starter_retrieval/{result.language}/{metric}") == {4: value}


@pytest.mark.slow
def test_whole_commands_from_the_teacher_to_results_json(workspace: Workspace):
    outputs = workspace.new_directory()
    for stage in ("teacher", "contrastive"):
        done = run_command(workspace.command(f"stage={stage}", f"outputs={outputs}", "eval=[starter_zero_shot]"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "starter_zero_shot" in done.stdout  # the table
        assert "Warning" not in done.stderr
    (run,) = (outputs / "contrastive").glob("2*")
    assert not list(run.glob("*.log"))
    assert (run.parent / "latest").resolve() == run.resolve()
    place = workspace.new_directory()
    command = [sys.executable, "-m", "altclip_train.evaluate", f"checkpoint={run / 'model'}", f"hydra.run.dir={place}"]
    options = [f"starter={workspace.starter}", "eval=[starter_retrieval,starter_zero_shot]", "device=cpu"]
    subprocess.run([*command, *options], cwd=REPOSITORY, env=environment(), check=True, timeout=240)
    entries = json.loads((place / "results.json").read_text(encoding="utf-8"))["results"]
    assert {(entry["benchmark"], entry["language"]) for entry in entries} == {
        (benchmark, language)
        for benchmark in ("starter_retrieval", "starter_zero_shot")
        for language in ("en", "zh", "ja")
    }


@pytest.mark.parity
def test_transformers_loads_the_model_directory_and_gives_the_same_logits(tuned: TrainedRun):
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    picture = Image.effect_noise((40, 50), 60).convert("RGB")
    ours = AltCLIPProcessor.from_pretrained(tuned.model)
    theirs = transformers.AltCLIPProcessor.from_pretrained(tuned.model)
    inputs = ours(text=TEXTS, images=picture, padding=True, return_tensors="pt")
    expected_inputs = theirs(text=TEXTS, images=picture, padding=True, return_tensors="pt")
    assert torch.equal(inputs.input_ids, expected_inputs["input_ids"])
    torch.testing.assert_close(inputs.pixel_values, expected_inputs["pixel_values"], rtol=0, atol=1e-5)
    reference = transformers.AltCLIPModel.from_pretrained(tuned.model).eval()
    with torch.no_grad():
        expected = reference(**expected_inputs)
        output = load_model(tuned.model)(**inputs)
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.text_embeds, expected.text_embeds, rtol=0, atol=1e-5)

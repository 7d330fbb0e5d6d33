"""Bad samples as a run sees them: counted, listed once, limited, and counted on after a resume."""

import json
from types import SimpleNamespace

import pytest

from altclip_train.training.bad_samples import FILE, BadSamples, SkipCounter
from altclip_train.types import SkippedSample, TextPairBatch
from tests.workspace import Workspace


def skipped(key, reason="image_type", shard="0.tar", detail="odd"):
    return SkippedSample(reason, shard, key, detail)


def feed(counter, good, bad, reason="image_type"):
    counter.add(good + bad, [skipped("k", reason)] * bad)


def test_too_many_bad_samples_are_an_error_with_reasons_and_counts():
    counter = SkipCounter(0.1)
    feed(counter, 30, 3)
    counter.check()
    counter.add(1, [skipped("e", "caption_empty", "1.tar", "")])
    feed(counter, 0, 10)
    with pytest.raises(ValueError, match=r"14 of 44 samples cannot be used, .*max_bad_fraction=0\.1 ") as error:
        counter.check()
    assert "image_type: 13, such as 'k' in 0.tar: odd\n" in str(error.value)
    assert str(error.value).endswith("caption_empty: 1, such as 'e' in 1.tar")


def test_bad_samples_within_the_limit_are_only_counted():
    counter = SkipCounter(0.1)
    for _ in range(50):
        feed(counter, 9, 1)
        counter.check()
    assert (counter.drawn, counter.skipped) == (500, 50)


@pytest.mark.parametrize(("limit", "bad"), [(0, 1), (0.5, 20)])
def test_limit_holds_from_the_twentieth_sample_on(limit, bad):
    counter = SkipCounter(limit)
    feed(counter, 19 - min(bad, 19), min(bad, 19))
    counter.check()
    feed(counter, 0, 1)
    with pytest.raises(ValueError, match="of 20 samples"):
        counter.check()


def test_all_samples_may_be_bad_if_so_asked():
    counter = SkipCounter(1)
    feed(counter, 0, 1000)
    counter.check()


class Log(dict):
    """A module that keeps what is logged."""

    device = "cpu"

    def log_dict(self, values):
        self.update(values)


def callback(directory, max_bad_fraction=1.0):
    bad_samples = BadSamples(directory=str(directory), every_n_steps=2)
    data = SimpleNamespace(max_bad_fraction=max_bad_fraction)
    bad_samples.setup(SimpleNamespace(datamodule=data, is_global_zero=True))
    return bad_samples


def train(bad_samples, module, steps, samples):
    """``samples`` are skipped in every one of ``steps`` batches of ten."""
    for step in steps:
        batch = TextPairBatch(None, None, [], ["k"] * 10, samples)
        bad_samples.on_train_batch_end(SimpleNamespace(global_step=step), module, None, batch, 0)


def keys_of(directory):
    return [json.loads(line)["key"] for line in (directory / FILE).read_text().splitlines()]


def test_skipped_samples_are_listed_once_and_counted_each_time(tmp_path):
    bad_samples, log = callback(tmp_path), Log()
    train(bad_samples, log, [1], [skipped("a")])
    assert not log
    train(bad_samples, log, [2], [skipped("a"), skipped("b", "caption_empty"), skipped("a", shard="1.tar")])
    assert log == {"data/skipped": 4, "data/skipped/image_type": 3, "data/skipped/caption_empty": 1}
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [("0.tar", "a"), ("0.tar", "b"), ("1.tar", "a")]
    assert lines[0] == {"reason": "image_type", "shard": "0.tar", "key": "a", "detail": "odd"}


def test_any_key_is_listed_on_one_line(tmp_path):
    odd = ["a\u2028b", "\udc80", "\n", "猫", '"']
    train(callback(tmp_path), Log(), [1, 2], [skipped(key) for key in odd])
    with (tmp_path / FILE).open("rb") as file:
        assert [json.loads(line)["key"] for line in file] == odd
    train(callback(tmp_path), Log(), [1, 2], [skipped(key) for key in odd])
    assert (tmp_path / FILE).read_bytes().count(b"\n") == len(odd)


def test_resume_counts_on_from_the_checkpoint_and_lists_nothing_twice(tmp_path):
    first, checkpoint = callback(tmp_path), {}
    train(first, Log(), [1, 2, 3], [skipped("a"), skipped("b")])
    first.on_save_checkpoint(None, Log(), checkpoint)  # between two exchanges
    train(first, Log(), [4, 5, 6], [skipped("c")])
    with (tmp_path / FILE).open("a") as file:
        file.write('{"reason": "image_')  # killed while it wrote

    resumed, log = callback(tmp_path), Log()
    resumed.on_load_checkpoint(None, Log(), json.loads(json.dumps(checkpoint)))
    train(resumed, log, [4, 5, 6], [skipped("c"), skipped("d")])
    assert log["data/skipped"] == 3 * 2 + 3 * 2
    assert resumed.counter.drawn == 60
    assert keys_of(tmp_path) == ["a", "b", "c", "d"]


def test_nothing_skipped_leaves_no_file(tmp_path, capsys):
    bad_samples, log = callback(tmp_path, 0.0), Log()
    train(bad_samples, log, range(1, 9), [])
    bad_samples.on_train_end(SimpleNamespace(is_global_zero=True))
    assert log == {"data/skipped": 0}
    assert not (tmp_path / FILE).exists()
    assert not capsys.readouterr().out


def test_validation_samples_are_counted_in_each_pass_alone(workspace: Workspace):
    shard = workspace.damaged_texts([1, 5], samples=30)
    overrides = ["stage=teacher", f"data.val_texts=[{{urls: {shard}}}]", "data.epoch_samples=16"]
    overrides += ["trainer.max_steps=-1", "trainer.max_epochs=2"]
    run = workspace.train(*overrides, "data.max_bad_fraction=0.1")
    assert list(run.metrics("val/skipped").values()) == [2, 2]
    assert list(run.metrics("data/skipped").values())[-1] == 0
    assert sorted(keys_of(run.directory)) == ["0001", "0005"]
    with pytest.raises(ValueError, match=r"2 of 30 samples cannot be used"):
        workspace.train(*overrides, "data.max_bad_fraction=0")


def test_a_run_counts_lists_and_ends_with_a_line(workspace: Workspace, capsys):
    shard = workspace.damaged_texts([3, 17], samples=24)
    sources = f"data.parallel_texts=[{{urls: {shard}}}]"
    epochs = [
        "trainer.max_steps=-1",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2",
        "data.max_bad_fraction=0.2",
    ]
    run = workspace.train("stage=teacher", sources, *epochs)
    assert len(keys_of(run.directory)) == 2
    assert f"skipped 4 of 48 samples (caption_json 4), listed in {run.directory / FILE}" in capsys.readouterr().out
    counts = run.metrics("data/skipped")
    assert counts[max(counts)] == run.metrics("data/skipped/caption_json")[max(counts)] == 4


def test_a_run_with_too_many_bad_samples_stops_before_its_end(workspace: Workspace):
    shard = workspace.damaged_texts(range(0, 24, 2), samples=24)
    directory = workspace.new_directory()
    with pytest.raises(ValueError, match=r"(?s)of 24 samples cannot be used, .*caption_json: 12, such as"):
        workspace.train(
            "stage=teacher",
            f"data.parallel_texts=[{{urls: {shard}}}]",
            "trainer.log_every_n_steps=100",
            directory=directory,
        )
    assert not (directory / "model").exists()
    assert len(keys_of(directory)) == 12

import csv

from altclip_train.training import MetricsCSV


def rows(directory):
    with (directory / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_step_logged_twice_is_one_row_and_new_metrics_are_new_columns(tmp_path):
    logger = MetricsCSV(directory=str(tmp_path))
    logger.log_metrics({"loss": 2.0}, step=10)
    logger.log_metrics({"lr": 0.5}, step=10)
    logger.save()
    logger.log_metrics({"loss": 1.0, "recall": 0.25}, step=20)
    logger.finalize("success")
    assert rows(tmp_path) == [
        {"step": "10", "loss": "2.0", "lr": "0.5", "recall": ""},
        {"step": "20", "loss": "1.0", "lr": "", "recall": "0.25"},
    ]


def test_a_resumed_run_replaces_the_steps_that_it_trains_again(tmp_path):
    killed = MetricsCSV(directory=str(tmp_path))
    for step in (10, 20, 30):
        killed.log_metrics({"loss": float(step)}, step=step)
    killed.save()
    resumed = MetricsCSV(directory=str(tmp_path))
    resumed.log_metrics({"loss": 0.2}, step=20)
    resumed.log_metrics({"loss": 0.3}, step=30)
    resumed.finalize("success")
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        ("10", "10.0"),
        ("20", "0.2"),
        ("30", "0.3"),
    ]


def test_a_run_without_metrics_leaves_no_file(tmp_path):
    MetricsCSV(directory=str(tmp_path)).finalize("success")
    assert not list(tmp_path.iterdir())

import csv

from altclip_train.training.metrics_csv import MetricsCSV


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
    for step in (10, 20, 30, 33):
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


def test_only_changed_rows_are_written_again(tmp_path):
    logger = MetricsCSV(directory=str(tmp_path))
    for step in range(3):
        logger.log_metrics({"loss": step + 0.5, "lr": 1.0}, step=step)
        logger.save()
    file = tmp_path / "metrics.csv"
    place = file.stat().st_ino
    logger.log_metrics({"loss": 9.25}, step=2)
    logger.log_metrics({"loss": 0.5}, step=3)
    logger.save()
    assert file.stat().st_ino == place  # not replaced by a new file
    assert [(row["step"], row["loss"], row["lr"]) for row in rows(tmp_path)] == [
        ("0", "0.5", "1.0"),
        ("1", "1.5", "1.0"),
        ("2", "9.25", "1.0"),
        ("3", "0.5", ""),
    ]


def test_a_step_logged_late_takes_its_place(tmp_path):
    logger = MetricsCSV(directory=str(tmp_path))
    for step in (10, 30, 20, 5):
        logger.log_metrics({"loss": float(step)}, step=step)
        logger.save()
    assert [row["step"] for row in rows(tmp_path)] == ["5", "10", "20", "30"]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n100,1.5\n200,2.5\n30")
    logger = MetricsCSV(directory=str(tmp_path))
    logger.log_metrics({"loss": 3.5}, step=300)
    logger.save()
    assert [row["step"] for row in rows(tmp_path)] == ["100", "200", "300"]


def test_a_run_without_metrics_leaves_no_file(tmp_path):
    MetricsCSV(directory=str(tmp_path)).finalize("success")
    assert not list(tmp_path.iterdir())

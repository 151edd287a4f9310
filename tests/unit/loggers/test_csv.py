"""metrics.csv: complete, and continued after a resume."""

import csv

from crossvit.loggers.csv import CSVLogger


def rows(directory) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def logged(directory, *entries: tuple[int, dict[str, float]]) -> None:
    logger = CSVLogger(directory)
    for step, figures in entries:
        logger.log_metrics(figures, step=step)
        logger.save()
    logger.finalize("success")


def test_a_figure_that_comes_late_gets_its_column(tmp_path):
    logged(
        tmp_path, (0, {"train/loss": 2.0}), (1, {"train/loss": 1.0}), (1, {"val/acc@1": 0.5}), (2, {"train/loss": 0.5})
    )
    assert [row["train/loss"] for row in rows(tmp_path)] == ["2.0", "1.0", "", "0.5"]
    assert [row["val/acc@1"] for row in rows(tmp_path)] == ["", "", "0.5", ""]
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "1", "2"]


def test_a_resumed_run_continues_and_replaces_what_it_repeats(tmp_path):
    logged(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}), (2, {"a": 2.0}))
    logged(tmp_path, (1, {"a": 10.0, "b": 3.0}), (2, {"a": 20.0}))
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""),
        ("1", "10.0", "3.0"),
        ("2", "20.0", ""),
    ]


def test_a_run_that_goes_on_with_a_validation_keeps_the_step_before_it(tmp_path):
    step, validated = (1, {"train/loss": 1.0, "epoch": 0.0}), (1, {"val/acc@1": 0.5, "epoch": 0.0})
    for known in ([step], [step, validated], [step, validated, (2, {"train/loss": 9.0})]):
        folder = tmp_path / str(len(known))
        logged(folder, (0, {"train/loss": 2.0}), *known)
        logged(folder, validated, (2, {"train/loss": 0.5}))
        assert [row["train/loss"] for row in rows(folder)] == ["2.0", "1.0", "", "0.5"]
        assert [row["val/acc@1"] for row in rows(folder)] == ["", "", "0.5", ""]


def test_a_step_that_is_repeated_repeats_its_validation(tmp_path):
    both = ((1, {"train/loss": 1.0}), (1, {"val/acc@1": 0.5}))
    logged(tmp_path, (0, {"train/loss": 2.0}), *both)
    logged(tmp_path, *both)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "1"]


def test_a_run_from_the_start_begins_a_new_file(tmp_path):
    logged(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}))
    logged(tmp_path, (0, {"a": 5.0}))
    assert [row["a"] for row in rows(tmp_path)] == ["5.0"]


def test_a_logger_that_logs_nothing_touches_nothing(tmp_path):
    logged(tmp_path, (0, {"a": 0.0}))
    CSVLogger(tmp_path).finalize("success")
    assert len(rows(tmp_path)) == 1
    CSVLogger(tmp_path / "other").finalize("success")
    assert not (tmp_path / "other").exists()


def test_a_file_cut_off_in_a_line_is_read_as_far_as_it_goes(tmp_path):
    logged(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-6])
    logged(tmp_path, (1, {"a": 7.0}))
    assert [row["a"] for row in rows(tmp_path)] == ["0.0", "7.0"]

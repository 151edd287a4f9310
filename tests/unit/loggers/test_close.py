"""The end of a stage's loggers."""

import wandb

from crossvit.loggers import close
from crossvit.loggers.csv import CSVLogger
from crossvit.loggers.wandb import wandb_logger


def test_the_next_stage_opens_a_run_of_its_own(tmp_path):
    ids = []
    for name in ("imagenet", "coco"):
        logger = wandb_logger(tmp_path, name, offline=True)
        logger.log_metrics({"a": 1.0}, step=0)
        ids.append(wandb.run.id)
        close([logger])
        assert wandb.run is None
    assert ids[0] != ids[1]


def test_a_run_that_was_never_opened_stays_so(tmp_path):
    close([wandb_logger(tmp_path, "coco", offline=True)])
    assert not (tmp_path / "wandb").exists()


def test_rows_still_waiting_are_written(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, step=0)
    close([logger])
    assert (tmp_path / "metrics.csv").is_file()

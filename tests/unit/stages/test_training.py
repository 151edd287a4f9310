"""The Trainer that a config describes."""

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from crossvit.config import compose
from crossvit.stages.training import build_trainer


@pytest.mark.parametrize(("callbacks", "bar"), [("default", RichProgressBar), ("quiet", type(None))])
def test_no_bar_takes_the_place_of_the_one_left_out(callbacks, bar, tmp_path):
    trainer = build_trainer(compose(["trainer=cpu", "logger=none", f"callbacks={callbacks}"]), tmp_path)
    assert type(trainer.progress_bar_callback) is bar

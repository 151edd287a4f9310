"""The Trainer that a config describes."""

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from crossvit.config import compose
from crossvit.errors import UserError
from crossvit.stages.training import build_trainer
from crossvit.tasks.synced_norm import SyncedNorm


@pytest.mark.parametrize(("callbacks", "bar"), [("default", RichProgressBar), ("quiet", type(None))])
def test_no_bar_takes_the_place_of_the_one_left_out(callbacks, bar, tmp_path):
    trainer = build_trainer(compose(["trainer=cpu", "logger=none", f"callbacks={callbacks}"]), tmp_path)
    assert type(trainer.progress_bar_callback) is bar


def test_devices_that_would_each_start_the_command_again(tmp_path):
    """As trainer.devices=auto finds them; a number is refused before."""
    cfg = compose(["trainer=cpu", "logger=none", "callbacks=quiet", "trainer.devices=2", "trainer.strategy=auto"])
    with pytest.raises(
        UserError, match=r"trainer\.devices=2 finds 2 devices here, and .*start the whole command once for each"
    ):
        build_trainer(cfg, tmp_path)


def test_norms_are_synchronised_by_what_keeps_activations(tmp_path):
    words = ["trainer=ddp_sim", "logger=none", "callbacks=quiet", "trainer.sync_batchnorm=true"]
    assert isinstance(build_trainer(compose(words), tmp_path).strategy._layer_sync, SyncedNorm)
    words[-1] = "trainer.sync_batchnorm=false"
    assert build_trainer(compose(words), tmp_path).strategy._layer_sync is None

"""How a spawned process ends: with its exit handlers, without taking its interpreter down; one that failed ends as ever."""

import atexit
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from crossvit.config import compose
from crossvit.spawning import Spawned, end_spawned
from crossvit.stages.training import build_trainer
from tests.watched import Watched, fit

PLACE = "CROSSVIT_TEST_SPAWNING"


def note(name: str) -> None:
    Path(os.environ[PLACE], name).touch()


if PLACE in os.environ:  # in a spawned process, which imports this before its work begins
    atexit.register(note, f"taken down {os.getpid()}")


class Noting(Watched):
    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if self.fails:
            raise ValueError("a failure of both")
        return super().training_step(batch, batch_idx)

    def on_train_end(self):
        atexit.register(note, f"handled {self.global_rank}")


class Ending(DDPStrategy):
    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        end_spawned(self)


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = tmp_path / "notes"
    place.mkdir()
    monkeypatch.setenv(PLACE, str(place))
    return place


@pytest.mark.slow
def test_one_that_has_trained(place, tmp_path):
    task = Noting()
    fit(task, tmp_path, strategy=Ending(start_method="spawn"), devices=2)
    assert sorted(path.name for path in place.iterdir()) == ["handled 0", "handled 1"]
    assert not torch.equal(task.layer.weight, torch.ones(1, 2))  # the weights came back


@pytest.mark.slow
def test_one_that_has_failed(place, tmp_path):
    with pytest.raises(Exception, match="a failure of both"):
        fit(Noting(fails=True), tmp_path, strategy=Ending(start_method="spawn"), devices=2)
    assert any(path.name.startswith("taken down") for path in place.iterdir())


@pytest.mark.parametrize(("name", "spawns"), [("ddp_sim", True), ("fsdp_sim", True), ("cpu", False)])
def test_every_trainer_that_spawns_ends_them_so(name, spawns, tmp_path):
    cfg = compose([f"trainer={name}", "logger=none", "callbacks=quiet"])
    OmegaConf.resolve(cfg)
    assert isinstance(build_trainer(cfg, tmp_path).strategy.launcher, Spawned) == spawns

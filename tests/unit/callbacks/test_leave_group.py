"""Processes that have trained have left their group before their interpreters end; one that failed keeps it."""

import atexit

import pytest
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

from crossvit.callbacks.leave_group import LeaveGroup, _leave
from tests.watched import Watched, fit


class Leaving(Watched):
    """Notes, when its process exits and after every handler registered later, whether the group is still there."""

    def __init__(self, directory, fails: bool = False) -> None:
        super().__init__()
        self.directory = directory
        self.fails = fails

    def on_train_start(self):
        atexit.register(self._note, self.directory / f"{self.global_rank}.txt")

    def training_step(self, batch, batch_idx):
        if self.fails:
            raise ValueError("a failure of both")
        return super().training_step(batch, batch_idx)

    @staticmethod
    def _note(path) -> None:
        path.write_text(f"still there: {dist.is_initialized()}")


@pytest.mark.slow
def test_spawned_processes_leave_their_group(tmp_path):
    fit(Leaving(tmp_path), tmp_path, LeaveGroup(), strategy=DDPStrategy(start_method="spawn"), devices=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["still there: False"] * 2


def test_a_single_process_registers_nothing(tmp_path, monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", lambda handler, *inputs: registered.append(handler))
    fit(Watched(), tmp_path, LeaveGroup())
    assert _leave not in registered


@pytest.mark.slow
def test_training_that_failed_registers_nothing(tmp_path):
    with pytest.raises(Exception, match="a failure of both"):
        fit(
            Leaving(tmp_path, fails=True), tmp_path, LeaveGroup(), strategy=DDPStrategy(start_method="spawn"), devices=2
        )
    assert "still there: True" in [path.read_text() for path in tmp_path.glob("?.txt")]

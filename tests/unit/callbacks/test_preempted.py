"""The signals of SLURM: a checkpoint first, then back into the queue."""

import os
import signal
import sys

import lightning as L
import pytest
import torch

from crossvit.callbacks import preempted
from crossvit.callbacks.checkpoint import StageCheckpoint, WholeFile
from crossvit.callbacks.preempted import Preempted
from crossvit.errors import Stopped
from tests.forked import forkserver


class Step(L.LightningModule):
    """Sends a signal in its third step, or fails behind it."""

    def __init__(self, number: int, fails: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.number, self.fails, self.steps = number, fails, 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 3:
            os.kill(os.getpid(), self.number)
            if self.fails:
                raise ConnectionResetError("wandb's process is gone")
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(step: Step, folder) -> None:
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StageCheckpoint(), Preempted()], plugins=[WholeFile()], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(step, torch.utils.data.DataLoader(torch.zeros(5, 1)))


def _fit(number: int, fails: bool, folder) -> None:
    fit(Step(number, fails), folder)


def saved(folder) -> int | None:
    last = folder / "checkpoints" / "last.ckpt"
    return torch.load(last, weights_only=True)["global_step"] if last.is_file() else None


@pytest.fixture(autouse=True)
def handlers():
    yield
    for number in Preempted.signals:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.mark.parametrize("number", preempted.WARNINGS)
def test_the_handler_that_was_there_comes_after_the_checkpoint(number, tmp_path):
    """Submitit's, which puts the job back into the queue and leaves."""
    seen = []

    def requeue(told, frame):
        seen.append((told, saved(tmp_path)))
        sys.exit(-1)

    signal.signal(number, requeue)
    with pytest.raises(SystemExit) as leaving:
        fit(Step(number), tmp_path)
    assert leaving.value.code == -1
    assert seen == [(number, 3)]


def test_without_submitit_it_asks_slurm_itself(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(preempted.subprocess, "run", lambda command, check: seen.append((command, saved(tmp_path))))
    with pytest.raises(Stopped) as leaving:
        fit(Step(signal.SIGUSR1), tmp_path)
    assert leaving.value.number == signal.SIGUSR1
    assert seen == [(["scontrol", "requeue", "7"], 3)]


@pytest.mark.parametrize(("fails", "step"), [(False, 3), (True, None)], ids=["saves", "what fails is no failure"])
def test_sigterm_leaves_at_once(fails, step, tmp_path):
    process = forkserver.Process(target=_fit, args=(int(signal.SIGTERM), fails, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 128 + signal.SIGTERM
    assert saved(tmp_path) == step


def test_ctrl_c_is_what_it_is_elsewhere(tmp_path):
    with pytest.raises(Stopped) as leaving:
        fit(Step(signal.SIGINT), tmp_path)
    assert (leaving.value.number, saved(tmp_path)) == (signal.SIGINT, 3)

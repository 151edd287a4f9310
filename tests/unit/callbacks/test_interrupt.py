import os
import signal

import lightning as L
import pytest
import torch

from crossvit.callbacks.interrupt import Interrupt


class Step(L.LightningModule):
    """Sends Ctrl-C in its third step."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.times, self.steps = times, 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 3:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(step: Step, tmp_path) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Interrupt()], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(step, torch.utils.data.DataLoader(torch.zeros(8, 1)))
    return trainer


def test_the_batch_is_finished_and_the_training_ends(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    step = Step()
    with pytest.raises(SystemExit) as leaving:
        fit(step, tmp_path)
    assert isinstance(leaving.value.__context__, KeyboardInterrupt)
    assert step.steps == 3
    signal.signal(signal.SIGINT, before)  # Lightning ignores further ones while it shuts down


def test_a_second_one_ends_it_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    step = Step(times=2)
    with pytest.raises(SystemExit):
        fit(step, tmp_path)
    assert step.weight.item() == pytest.approx(-0.2)  # the third step was not taken
    signal.signal(signal.SIGINT, before)


def test_the_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    step = Step(times=0)
    fit(step, tmp_path)
    assert step.steps == 6
    assert signal.getsignal(signal.SIGINT) is before

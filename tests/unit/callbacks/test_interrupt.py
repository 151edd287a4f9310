import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from crossvit.callbacks import interrupt
from crossvit.callbacks.checkpoint import StageCheckpoint, WholeFile, damage
from crossvit.callbacks.interrupt import SIGNALS, Interrupt
from crossvit.errors import Stopped


class Step(L.LightningModule):
    """Sends a signal in its third step, or in a batch of its validation."""

    def __init__(self, number: int = signal.SIGINT, times: int = 1, validation: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.number, self.times, self.validation, self.steps, self.validated = number, times, validation, 0, 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 3 and self.validation is None:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated += 1
        if self.validated == self.validation:
            os.kill(os.getpid(), self.number)
        self.log("val/weight", self.weight.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(step: Step, tmp_path, ckpt_path=None, **settings) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Interrupt(), StageCheckpoint()], plugins=[WholeFile()], default_root_dir=tmp_path, num_sanity_val_steps=0,
        **settings,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    trainer.fit(step, loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_step_is_finished_and_saved_and_the_training_ends(number, tmp_path):
    step = Step(number)
    with pytest.raises(Stopped) as leaving:
        fit(step, tmp_path)
    assert (leaving.value.number, leaving.value.code) == (number, 128 + number)
    assert step.steps == 3
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert damage(last) is None
    resumed = Step()
    resumed.steps = 10
    trainer = fit(resumed, tmp_path, ckpt_path=str(last))
    assert (resumed.steps, trainer.global_step) == (15, 8)
    assert resumed.weight.item() == pytest.approx(-0.8)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_validation_is_left_and_made_anew(batch, tmp_path):
    step = Step(signal.SIGTERM, validation=batch)
    with pytest.raises(Stopped):
        fit(step, tmp_path)
    assert (step.steps, step.validated) == (4, batch)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    resumed = Step(validation=99)
    trainer = fit(resumed, tmp_path, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert (resumed.steps, resumed.validated, trainer.global_step, trainer.current_epoch) == (4, 8, 8, 2)
    assert trainer.callback_metrics["val/weight"] == pytest.approx(-0.8)


def test_a_validation_in_mid_epoch_is_made_anew_too(tmp_path):
    step = Step(signal.SIGTERM, validation=6)
    with pytest.raises(Stopped):
        fit(step, tmp_path, val_check_interval=2)
    assert (step.steps, step.validated) == (4, 6)
    step = Step(signal.SIGTERM, validation=2)
    with pytest.raises(Stopped):
        fit(step, tmp_path / "other", val_check_interval=2)
    assert (step.steps, step.validated) == (2, 2)
    resumed = Step(validation=99)
    last = str(tmp_path / "other" / "checkpoints" / "last.ckpt")
    trainer = fit(resumed, tmp_path / "other", ckpt_path=last, val_check_interval=2)
    assert (resumed.steps, resumed.validated, trainer.global_step) == (6, 16, 8)


def test_gradients_that_are_pending_get_their_step(tmp_path):
    step = Step(signal.SIGTERM)
    with pytest.raises(Stopped):
        fit(step, tmp_path, accumulate_grad_batches=2)
    assert step.steps == 4  # with the second batch of its step, behind which the validation follows
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_checkpoint_that_is_being_written_is_finished(tmp_path, monkeypatch):
    write = WholeFile.save_checkpoint

    def asked_to_end(self, content, path, storage_options=None) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, content, path)

    monkeypatch.setattr(WholeFile, "save_checkpoint", asked_to_end)
    with pytest.raises(Stopped):
        fit(Step(times=0), tmp_path)
    left = {path.name: damage(path) for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"last.ckpt": None, "last-1.ckpt": None}


def test_a_second_one_soon_after_is_the_same_one(tmp_path):
    step = Step(times=2)
    with pytest.raises(Stopped):
        fit(step, tmp_path)
    assert step.weight.item() == pytest.approx(-0.3)


def test_a_second_one_later_ends_it_at_once(tmp_path, monkeypatch):
    clock = iter(range(0, 100, 5))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    step = Step(times=2)
    with pytest.raises(Stopped):
        fit(step, tmp_path)
    assert step.weight.item() == pytest.approx(-0.2)  # the third step was not taken


def test_the_handlers_are_put_back(tmp_path):
    step = Step(times=0)
    fit(step, tmp_path)
    assert step.steps == 8

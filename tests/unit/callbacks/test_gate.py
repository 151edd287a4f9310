"""A stage ends where its figure has reached the threshold, and not before."""

import logging

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from crossvit.callbacks.checkpoint import StageCheckpoint
from crossvit.callbacks.early_stopping import EarlyStopping
from crossvit.callbacks.gate import Gate
from crossvit.errors import UserError

FIGURES = (0.5, 0.8, 0.9, 0.7, 0.95, 0.95)


class Learner(L.LightningModule):
    """Its validation figure after epoch i is FIGURES[i], whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, _):
        self.log("val/accuracy", FIGURES[self.current_epoch])
        self.log("val/error", 1 - FIGURES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def epochs_trained(directory, gate: Gate, resume: bool = False, sanity: int = 0) -> int:
    trainer = L.Trainer(
        max_epochs=len(FIGURES),
        accelerator="cpu",
        default_root_dir=str(directory),
        logger=False,
        callbacks=[gate, StageCheckpoint()],
        num_sanity_val_steps=sanity,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.ones(2, 1), batch_size=2)  # one step an epoch
    last = directory / "checkpoints" / "last.ckpt"
    trainer.fit(Learner(), loader, loader, ckpt_path=str(last) if resume else None, weights_only=True)
    return trainer.global_step


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"threshold": None}, 6),
        ({"threshold": 0.5}, 1),
        ({"threshold": 0.85}, 3),
        ({"threshold": 0.99}, 6),
        ({"threshold": 0.85, "min_epochs": 3}, 3),
        ({"threshold": 0.85, "min_epochs": 4}, 5),  # a figure that falls again is no reason to stop
        ({"threshold": 0.25, "monitor": "val/error", "mode": "min"}, 2),
    ],
    ids=str,
)
def test_the_stage_ends_at_the_first_validation_that_reaches_the_threshold(tmp_path, settings, epochs):
    assert epochs_trained(tmp_path, Gate(**{"monitor": "val/accuracy", **settings})) == epochs


def test_the_trial_validation_before_training_opens_no_gate(tmp_path):
    assert epochs_trained(tmp_path, Gate("val/accuracy", 0.1, min_epochs=1), sanity=1) == 1


def test_what_opened_it_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="crossvit.callbacks.gate"):
        epochs_trained(tmp_path, Gate("val/accuracy", 0.85))
    lines = [record.message for record in caplog.records if record.name == "crossvit.callbacks.gate"]
    assert lines == ["gate: val/accuracy 0.9000 has reached 0.85 after 3 epochs"]


def test_a_resumed_stage_whose_gate_has_opened_trains_no_further(tmp_path):
    assert epochs_trained(tmp_path, Gate("val/accuracy", 0.85)) == 3
    assert epochs_trained(tmp_path, Gate("val/accuracy", 0.85), resume=True) == 3


def test_a_resumed_stage_that_has_risen_no_more_trains_no_further(tmp_path):
    def stopping() -> EarlyStopping:
        return EarlyStopping("val/accuracy", mode="max", patience=1)

    assert epochs_trained(tmp_path, stopping()) == 4  # 0.7 after 0.9
    assert epochs_trained(tmp_path, stopping(), resume=True) == 4


def test_a_figure_that_no_validation_logs_is_named(tmp_path):
    with pytest.raises(UserError, match=r"callbacks.gate.monitor=val/acuracy: .*there is val/accuracy, val/error"):
        epochs_trained(tmp_path, Gate("val/acuracy", 0.85))

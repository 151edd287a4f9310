"""Checkpoints lie in the stage's own directory under fixed names."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from crossvit.callbacks.checkpoint import StageCheckpoint


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(directory, epochs: int, ckpt_path=None) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(directory),
        logger=CSVLogger(str(directory / "logs")),
        callbacks=[StageCheckpoint()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    trainer.fit(Line(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def test_fixed_names_whatever_the_logger(tmp_path):
    fit(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt"]


def test_a_resumed_stage_writes_to_the_same_files(tmp_path):
    fit(tmp_path, 1)
    trainer = fit(tmp_path, 3, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert trainer.global_step == 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.ckpt"]
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6


def test_a_job_killed_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    fit(tmp_path, 1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def half(self, trainer, path):
        with open(path, "wb") as file:
            file.write(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.pytorch.callbacks.ModelCheckpoint._save_checkpoint", half)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, 3, ckpt_path=str(last))
    assert last.read_bytes() == before

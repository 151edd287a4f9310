"""Checkpoints of a stage being trained."""

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StageCheckpoint(ModelCheckpoint):
    """Keeps `<trainer.default_root_dir>/checkpoints/last.ckpt`, whatever the loggers are: an interrupted stage goes on from it.

    A stage's result is its last weights, so nothing else is kept. The file is replaced whole, a job killed while writing leaves the one
    before.
    """

    def __init__(self, every_n_epochs: int | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            filename="last",
            enable_version_counter=False,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        partial = f"{filepath}.partial"
        super()._save_checkpoint(trainer, partial)
        if trainer.is_global_zero:
            os.replace(partial, filepath)
        self._last_checkpoint_saved = filepath

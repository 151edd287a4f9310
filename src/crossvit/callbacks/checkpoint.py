"""Checkpoints of a stage being trained."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class StageCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` that writes to `<trainer.default_root_dir>/checkpoints`, whatever the loggers are.

    The names are fixed (`best.ckpt`, `last.ckpt`): an interrupted stage finds its own last checkpoint again.
    """

    def __init__(self, filename: str = "best", **settings) -> None:
        super().__init__(filename=filename, auto_insert_metric_name=False, enable_version_counter=False, **settings)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)

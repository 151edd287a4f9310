"""The end of a stage whose monitored figure rises no more."""

import lightning as L
from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's; a stage that is interrupted after it has stopped ends at once when it is resumed."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0

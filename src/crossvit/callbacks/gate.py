"""The end of a stage where it has learned enough."""

import logging

import lightning as L
from lightning.pytorch.callbacks import Callback

from crossvit.errors import UserError

log = logging.getLogger(__name__)


class Gate(Callback):
    """Ends the stage after the first validation at which `monitor` has reached `threshold`.

    threshold: None never ends it. mode: `max`, reached from below, or `min`, reached from above. min_epochs: epochs that are trained in any
    case. A stage that is interrupted after the gate has opened ends at once when it is resumed.

    Raises UserError for a figure that the validation does not log.
    """

    def __init__(self, monitor: str, threshold: float | None = None, mode: str = "max", min_epochs: int = 1) -> None:
        self.monitor = monitor
        self.threshold = threshold
        self.mode = mode
        self.min_epochs = min_epochs
        self.open = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.open

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if self.threshold is None or trainer.sanity_checking or epochs < self.min_epochs:
            return
        figure = self._figure(trainer)
        reached = figure >= self.threshold if self.mode == "max" else figure <= self.threshold
        self.open = trainer.strategy.reduce_boolean_decision(reached, all=True)
        if self.open:
            trainer.should_stop = True
            log.info("gate: %s %.4f has reached %s after %d epochs", self.monitor, figure, self.threshold, epochs)

    def state_dict(self) -> dict[str, bool]:
        return {"open": self.open}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self.open = state_dict["open"]

    def _figure(self, trainer: L.Trainer) -> float:
        figures = trainer.callback_metrics
        if self.monitor not in figures:
            there = ", ".join(name for name in sorted(figures) if name.startswith("val/")) or "none"
            raise UserError(
                f"callbacks.gate.monitor={self.monitor}: this stage's validation has no such figure; there is {there}"
            )
        return float(figures[self.monitor])

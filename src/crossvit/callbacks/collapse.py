"""Embeddings that all become one."""

import logging

import lightning as L

from crossvit.callbacks.health import record

log = logging.getLogger(__name__)

SIDES = ("image", "text")


class Collapse(L.Callback):
    """Warns where a tower gives the same embedding for everything, which the loss alone may not show.

    Looks at the figures that a cross-modal task logs, `train/<side>/std` below `min_std` or `train/<side>/rank` below `min_rank`
    (`metrics/spread.py`), in the steps that are logged. A network starts in such a state, so a warning comes only where it is there
    again, or still there after `patience` logged steps; once until it has gone. Stages without texts have no such figures.
    """

    def __init__(self, min_std: float = 0.05, min_rank: float = 1.5, patience: int = 20) -> None:
        self.limits = {"std": min_std, "rank": min_rank}
        self.patience = patience
        self._low = dict.fromkeys(SIDES, 0)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.logs_this_step or not trainer.is_global_zero:
            return
        for side in SIDES:
            figures = {name: pl_module.logged.get(f"train/{side}/{name}") for name in self.limits}
            if None in figures.values():
                continue
            low = any(value < self.limits[name] for name, value in figures.items())
            self._low[side] = self._low[side] + 1 if low else 0
            if self._low[side] == self.patience:
                self._warn(trainer, side, figures)

    def state_dict(self) -> dict[str, int]:
        return dict(self._low)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._low = dict(state_dict)

    def _warn(self, trainer: L.Trainer, side: str, figures: dict[str, float]) -> None:
        path = record(trainer, "collapsed embeddings", step=trainer.global_step, side=side, **figures)
        log.warning(
            "the %s embeddings have collapsed: std %.3g, effective rank %.2f for %d logged steps up to step %d (%s). Lower optimizer.lr, "
            "or see that the pairs differ and that objective.itc or another term pushes them apart",
            side, figures["std"], figures["rank"], self.patience, trainer.global_step, path,
        )  # fmt: skip

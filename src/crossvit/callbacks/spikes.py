"""Losses that leap."""

import logging
from collections import deque
from statistics import median
from typing import Any

import lightning as L

from crossvit.callbacks.health import Losses, LossWatch, record
from crossvit.errors import UserError

log = logging.getLogger(__name__)

ACTIONS = ("warn", "stop")
WARNINGS = 5  # the file holds them all
REFRESH = 10  # batches that one bound serves for
TO_DEVIATION = 1.4826  # from a median absolute deviation to the standard deviation of a normal distribution


class LossSpikes(LossWatch):
    """Notes in `health.jsonl` every batch whose loss leaps away from those of the last `window` batches.

    A leap is a loss above their median by more than `deviations` robust standard deviations (1.4826 x the median absolute deviation) and
    by more than `rise` of the median. action: `warn`, or `stop`, which raises UserError; the stage then goes on from its last
    checkpoint. Nothing is looked at before `window` batches have passed. The first process looks at its own batches.

    Lightning's SpikeDetection was not taken: it makes every step wait for the device and for the other processes, always ends the
    training, and cannot be resumed (its `load_state_dict` names an attribute that is not there, in 2.6.6).
    """

    def __init__(self, action: str = "warn", window: int = 100, deviations: float = 10.0, rise: float = 0.5) -> None:
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(f"action={action}: choose {' or '.join(ACTIONS)}")
        self.action = action
        self.deviations = deviations
        self.rise = rise
        self.spikes = 0
        self._recent: deque[float] = deque(maxlen=window)
        self._bound: tuple[float, float] | None = None
        self._age = 0

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule, losses: Losses) -> None:
        loss = losses.values["loss"]
        if losses.not_finite or not trainer.is_global_zero:
            return
        if self._bound is not None and loss > self._bound[1]:
            self._found(trainer, losses, *self._bound)
        self._recent.append(loss)
        self._age += 1
        if len(self._recent) == self._recent.maxlen and (self._bound is None or self._age >= REFRESH):
            middle = median(self._recent)
            deviation = TO_DEVIATION * median(abs(value - middle) for value in self._recent)
            self._bound = (middle, middle + max(self.deviations * deviation, self.rise * abs(middle)))
            self._age = 0

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "bound": self._bound, "age": self._age, "spikes": self.spikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recent = deque(state_dict["recent"], maxlen=self._recent.maxlen)
        self._bound = state_dict["bound"] and tuple(state_dict["bound"])
        self._age, self.spikes = state_dict["age"], state_dict["spikes"]

    def _found(self, trainer: L.Trainer, losses: Losses, middle: float, bound: float) -> None:
        self.spikes += 1
        path = record(trainer, "loss spike", **losses.to_json(), median=middle, bound=bound)
        told = (
            f"the loss leaps to {losses.values['loss']:.4g} in step {losses.step} (median of the last {len(self._recent)} batches "
            f"{middle:.4g}), with the samples {losses.named_samples()}; see {path}"
        )
        if self.action == "stop":
            raise UserError(
                f"{told}.\nLower optimizer.lr; the same command goes on from the last checkpoint, callbacks.spikes.action=warn beyond it"
            )
        if self.spikes <= WARNINGS:
            log.warning("%s", told)

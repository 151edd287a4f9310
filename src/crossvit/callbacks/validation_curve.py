"""The validation figures of a stage over its steps, kept beside its weights: how soon a recipe learns, not only how far it gets."""

import json
from pathlib import Path
from typing import Any

import lightning as L

from crossvit.report.atomic import write_atomically

VALIDATION = "validation.json"


class ValidationCurve(L.Callback):
    """Leaves `<trainer.default_root_dir>/validation.json`: a list of {"step": ..., "val/...": ...}, one entry a validation.

    A checkpoint carries the entries, so a resumed stage ends with the whole curve.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.points.append({"step": trainer.global_step, **figures})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / VALIDATION, json.dumps(self.points).encode())

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = list(state_dict["points"])

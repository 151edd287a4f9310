"""How many steps a stage has taken, kept where the process that stores it looks: those that train may be others."""

import json
from pathlib import Path

import lightning as L

from crossvit.report.atomic import write_atomically

STEPS = "steps.json"


class StepCount(L.Callback):
    """Leaves `<trainer.default_root_dir>/steps.json`, the optimiser's steps from the start of the stage, a number."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            write_atomically(Path(trainer.default_root_dir) / STEPS, json.dumps(trainer.global_step).encode())

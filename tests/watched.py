"""A task of one layer whose losses a test decides, and its training."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from crossvit.data.batches import ImageBatch
from crossvit.tasks.base import Task
from crossvit.tasks.schedules import constant


def one(batch: int) -> float:
    return 1.0


class Watched(Task):
    """loss = mean((w x)^2) x factor(batch number); `factor` may be NaN. `figures` are logged."""

    def __init__(self, factor: Callable[[int], float] = one, figures: Callable[[int], dict] | None = None) -> None:
        super().__init__(optimizer=partial(torch.optim.AdamW, lr=1e-2), schedule=constant)
        self.layer = nn.Linear(2, 1)
        nn.init.ones_(self.layer.weight)  # far from 0, whatever the test before has drawn
        self.factor, self.figures, self.taken = factor, figures, 0

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        loss = self.layer(batch.image.flatten(1)).square().mean() * self.factor(self.taken)
        self.step_losses = {"loss": loss.detach(), "square": loss.detach()}
        if self.figures is not None:
            self.log_figures({name: torch.tensor(value) for name, value in self.figures(self.taken).items()})
        self.taken += 1
        return loss


def batches(count: int, size: int = 4) -> DataLoader:
    """Batch k holds the samples 4 k to 4 k + 3."""
    found = [
        ImageBatch(torch.ones(size, 1, 1, 2), torch.zeros(size).long(), torch.arange(size) + size * k)
        for k in range(count)
    ]
    return DataLoader(found, batch_size=None)


def fit(task: L.LightningModule, directory: Path, *callbacks: L.Callback, steps: int = 12, **settings) -> L.Trainer:
    """Trains on the CPU, without a progress bar."""
    trainer = L.Trainer(
        **{"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 1} | settings,
        default_root_dir=directory,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, batches(steps))
    return trainer

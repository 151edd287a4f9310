"""What the callbacks that watch over a training have in common: each batch's losses, and the file where they write what they saw."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

HEALTH = "health.jsonl"
SHOWN = 8  # samples that a message names


class Losses(NamedTuple):
    """A batch's losses, by name: `loss` is what is minimised, the others are its terms before their weights.

    step: optimizer steps taken before it. rows: the samples of this process, by their place in the dataset.
    """

    step: int
    epoch: int
    batch: int
    values: dict[str, float]
    rows: Tensor | None

    @property
    def samples(self) -> list[int]:
        """`rows` as numbers."""
        return [] if self.rows is None else self.rows.tolist()

    @property
    def not_finite(self) -> dict[str, float]:
        """The terms that are NaN or infinite; the sum where all of them are finite but it is not."""
        found = {name: value for name, value in self.values.items() if not math.isfinite(value)}
        return {name: value for name, value in found.items() if name != "loss"} or found

    def named_samples(self) -> str:
        """For a message: the first of them."""
        samples = self.samples
        more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        return ", ".join(map(str, samples[:SHOWN])) + more

    def to_json(self) -> dict[str, Any]:
        """As `health.jsonl` holds it; what json does not know is written as text."""
        values = {name: value if math.isfinite(value) else str(value) for name, value in self.values.items()}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "losses": values,
            "samples": self.samples,
        }


def record(trainer: L.Trainer, event: str, **what: Any) -> Path:
    """Adds a line to `<trainer.default_root_dir>/health.jsonl` and returns its place."""
    path = Path(trainer.default_root_dir) / HEALTH
    line = json.dumps({"event": event, "process": trainer.global_rank, **what})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    return path


class LossWatch(L.Callback):
    """Hands the losses of each training batch to `look`: before its backward pass on a CPU, one batch later on a GPU, which so never waits.

    Reads `Task.step_losses`; of a task that keeps none, what is differentiated.
    """

    def __init__(self) -> None:
        self._batch: tuple[int, Tensor | None] = (0, None)
        self._pending: tuple[Any, Tensor, Losses] | None = None

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule, losses: Losses) -> None:
        """What a subclass makes of them."""
        raise NotImplementedError

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = (batch_idx, getattr(batch, "index", None))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        found = pl_module.step_losses or {"loss": loss}
        batch, rows = self._batch
        losses = Losses(trainer.global_step, trainer.current_epoch, batch, {}, rows)
        if not loss.is_cuda:
            self.look(trainer, pl_module, losses._replace(values={name: value.item() for name, value in found.items()}))
            return
        self._settle(trainer, pl_module)
        values = torch.stack([value.detach().float() for value in found.values()])
        copied, arrived = torch.empty(values.shape, pin_memory=True), torch.cuda.Event()
        copied.copy_(values, non_blocking=True)
        arrived.record()
        self._pending = (arrived, copied, losses._replace(values=dict.fromkeys(found, 0.0)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._settle(trainer, pl_module)

    def _settle(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            arrived, copied, losses = pending
            arrived.synchronize()
            values = dict(zip(losses.values, copied.tolist(), strict=True))
            self.look(trainer, pl_module, losses._replace(values=values))

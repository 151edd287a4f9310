"""Losses, gradients and weights that are NaN or infinite."""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from crossvit.callbacks.health import Losses, LossWatch, record
from crossvit.errors import Diverged

log = logging.getLogger(__name__)

ADVICE = "lower optimizer.lr or raise scheduler.warmup, or see where it begins with debug=anomaly"
ACTIONS = ("stop", "skip")


class NonFinite(LossWatch):
    """Keeps NaN and infinity out of the weights.

    action: `stop` ends the stage at a loss that is not finite; a gradient that is not shows in the loss after it. `skip` leaves out every
    optimizer step whose gradients are not finite (on a GPU it waits for each step's gradients), and ends the stage after `max_skipped`
    such steps in a row. Under 16-mixed the loss scaler leaves such steps out itself, that is how it finds its scale: a loss that is not
    finite still stops.

    What is found is written to `health.jsonl`. Whatever the action, no checkpoint is written of weights that are not finite, so that the
    stage goes on from the one before. Raises Diverged naming step, term and samples.
    """

    def __init__(self, action: str = "stop", max_skipped: int = 10) -> None:
        super().__init__()
        if action not in ACTIONS:
            raise ValueError(f"action={action}: choose {' or '.join(ACTIONS)}")
        self.action = action
        self.max_skipped = max_skipped
        self.skipped = 0
        self._in_a_row = 0
        self._before: Losses | None = None

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule, losses: Losses) -> None:
        if losses.not_finite and (self.action == "stop" or _scaler(trainer) is not None):
            raise Diverged(self._told(trainer, pl_module, losses))
        self._before = losses

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.action == "stop" or _scaler(trainer) is not None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(norm)), all=True):
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # the optimizer passes it by: no momentum, no decay, no step counted
        self._skip(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if not all_finite([*pl_module.parameters(), *pl_module.buffers()]):
            path = record(trainer, "weights not finite", step=trainer.global_step)
            raise Diverged(
                f"the weights are not finite after step {trainer.global_step}: no checkpoint is written of them, the one before stays "
                f"({path}). {ADVICE[0].upper()}{ADVICE[1:]}"
            )

    def _told(self, trainer: L.Trainer, pl_module: L.LightningModule, losses: Losses) -> str:
        """What is wrong with a batch, and what to do."""
        terms = ", ".join(f"{name} is {value}" for name, value in losses.not_finite.items())
        of_step_before = self._before is not None and not all_finite(pl_module.parameters()) and not _on_gpu(pl_module)
        path = record(trainer, "loss not finite", **losses.to_json(), weights_finite=not of_step_before)
        where = f"the samples {losses.named_samples()}" if losses.samples else f"batch {losses.batch}"
        if of_step_before:
            where = "weights that are not finite since the step before, whose gradients overflowed"
        return (
            f"the loss is not finite in step {losses.step} (epoch {losses.epoch}, batch {losses.batch}): {terms}, with {where}; "
            f"all of it in {path}.\n{ADVICE[0].upper()}{ADVICE[1:]}; callbacks.nonfinite.action=skip leaves such batches out"
        )

    def _skip(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle(trainer, pl_module)
        self.skipped += 1
        self._in_a_row += 1
        losses = self._before
        path = record(trainer, "step skipped", **losses.to_json())
        if self.skipped == 1:
            log.warning(
                "step %d is left out, its gradients are not finite; such steps are listed in %s", losses.step, path
            )
        if not all_finite(pl_module.buffers()):
            raise Diverged(
                f"step {losses.step} has left NaN in running statistics or in the queue, which skipping cannot mend ({path}): {ADVICE}"
            )
        if self._in_a_row >= self.max_skipped:
            raise Diverged(
                f"the gradients of {self._in_a_row} steps in a row are not finite, the last is step {losses.step} ({path}): {ADVICE}"
            )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no floating-point value is NaN or infinite; of a sharded tensor in the part that lies here."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    flags = [torch.isfinite(t.detach()).all() for t in local if t.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _on_gpu(pl_module: L.LightningModule) -> bool:
    return pl_module.device.type == "cuda"  # where the optimizer has gone on before the loss was looked at

"""What every trained thing has in common: parameter groups, schedule, logging, and what it hands to the next stage."""

from collections.abc import Callable, Mapping

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.models.execution import Execution
from crossvit.sharding import for_optimizer, is_sharded, put_back, shard, whole

NO_DECAY = ("logit_scale", "position", "cls", "modality", "query")


class Task(L.LightningModule):
    """A LightningModule of this project.

    optimizer: (list of parameter groups) -> torch optimizer, e.g. a partial of torch.optim.AdamW.
    schedule: (step, total steps) -> factor of the base rate; see `tasks/schedules.py`.
    lr_scale: factors of the base rate by prefix of the parameter name in `network`; the longest prefix that fits decides.
    execution: how the network runs.
    """

    provides: tuple[str, ...] = ()
    """Prefixes of the names in `network` that the next stage takes over."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[int, int], float],
        lr_scale: Mapping[str, float] | None = None,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._schedule = schedule
        self._lr_scale = dict(lr_scale or {})
        self._total_steps: int | None = None
        self._execution = execution or Execution()
        self._configured = False
        self.step_losses: dict[str, Tensor] = {}  # of the batch at hand: `loss`, and each term's before its weight
        self.logged: dict[str, float] = {}  # what was logged last

    @property
    def network(self) -> nn.Module:
        """The module whose parameter names the stages agree on."""
        return self

    def validation_figures(self, data) -> tuple[str, ...]:
        """Names of what a validation on the LightningDataModule's pairs or pictures logs."""
        raise NotImplementedError

    @property
    def differentiates_by_parameters(self) -> bool:
        """Whether a step itself asks for gradients of the weights, which then have to be whole all through it."""
        return False

    @property
    def runs_again(self) -> bool:
        """Whether a step runs a part of the network more than once."""
        return False

    def configure_model(self) -> None:
        """Lightning calls this in the process that trains, before there is an optimiser."""
        if self._configured:
            return
        self._configured = True
        for network in self._networks():
            self._execution.apply(network)
        if self.device_mesh is not None:
            if self.trainer.strategy._layer_sync is not None:
                self.trainer.strategy._layer_sync.apply(self)
            steps = ("training_step", "validation_step")
            shard(self, self.device_mesh["data_parallel"], steps, as_one=self.differentiates_by_parameters)

    def _networks(self) -> list[nn.Module]:
        """All that runs in a step."""
        return [self.network]

    def on_after_backward(self) -> None:
        if is_sharded(self):
            put_back(self)

    def export(self) -> dict[str, Tensor]:
        """The trained weights under the names of `network`, on the CPU, in fp32 whatever they were trained in."""
        return {name: _plain(value) for name, value in self.network.state_dict().items()}

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(self.network, self._base_rate(), self._lr_scale)
        if is_sharded(self):
            groups = for_optimizer(groups, self.device_mesh["data_parallel"])
        optimizer = self._optimizer(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Learns how long the training is. Asked in `configure_optimizers`, Lightning would open the training data before it restores a
        checkpoint, and a resumed run would begin with the first samples again."""
        self._total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler, optimizer = self.lr_schedulers(), self.optimizers()
        scheduler._last_lr = [rate * self._factor(scheduler.last_epoch) for rate in scheduler.base_lrs]
        for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
            group["lr"] = rate

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Lightning refuses to clip under a fused optimiser and mixed precision, for such an optimiser undoes the scale of the loss itself.
        Where there is one it is undone before the clipping; torch's scaler knows, and the optimiser then leaves it."""
        precision = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(precision, MixedPrecision):
            if precision.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                precision.scaler.unscale_(optimizer)
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _factor(self, step: int) -> float:
        return 1.0 if self._total_steps is None else self._schedule(step, self._total_steps)

    @property
    def logs_this_step(self) -> bool:
        """Whether a logger writes the figures of the step being taken."""
        trainer = self._trainer
        return bool(trainer and trainer.loggers) and (trainer.global_step + 1) % trainer.log_every_n_steps == 0

    def log_figures(self, figures: Mapping[str, Tensor], prefix: str = "train") -> None:
        """Logs a step's figures, only in the steps that a logger writes: `self.log` costs more than a small model's layer."""
        if self.logs_this_step:
            values = {f"{prefix}/{name}": float(value) for name, value in figures.items()}
            values[f"{prefix}/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
            values["epoch"] = self.current_epoch
            self.logged = values
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=self.trainer.global_step)

    def _base_rate(self) -> float:
        keywords = getattr(self._optimizer, "keywords", {})
        if "lr" not in keywords:
            raise ValueError("the optimizer partial must carry lr, e.g. partial(torch.optim.AdamW, lr=1e-3)")
        return keywords["lr"]


def _plain(value: Tensor) -> Tensor:
    value = whole(value.detach()).cpu().contiguous()
    return value.float() if value.is_floating_point() else value


def parameter_groups(network: nn.Module, rate: float, lr_scale: Mapping[str, float]) -> list[dict]:
    """Groups by learning rate and weight decay, of the parameters that require a gradient.

    Vectors (norms, biases) and the tables and scalars named in NO_DECAY are not decayed. Raises UserError for a prefix that
    no parameter has.
    """
    unused = [prefix for prefix in lr_scale if not any(n.startswith(prefix) for n, _ in network.named_parameters())]
    if unused:
        parts = sorted({name.split(".")[0] for name, _ in network.named_parameters()})
        raise UserError(
            f"optimizer.lr_scale.{unused[0]}: no parameter's name begins so; the parts are {', '.join(parts)}"
        )
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        fitting = [prefix for prefix in lr_scale if name.startswith(prefix)]
        factor = lr_scale[max(fitting, key=len)] if fitting else 1.0
        leaf = name.rsplit(".", 1)[-1]
        decays = parameter.dim() > 1 and not any(word in leaf for word in NO_DECAY)
        group = groups.setdefault((factor, decays), {"params": [], "lr": rate * factor})
        if not decays:
            group["weight_decay"] = 0.0
        group["params"].append(parameter)
    return list(groups.values())

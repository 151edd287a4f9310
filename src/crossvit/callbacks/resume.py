"""What a checkpoint of Lightning leaves out and a resumed training needs: random numbers, and the figures of the last validation."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist

from crossvit.distributed import rank, world_size


class Resume(L.Callback):
    """Puts the state of every process's random number generators into the checkpoint, and takes it out before the first batch that follows.

    Training on as many processes goes on with the same dropout. The figures of the last validation come along: a stage that is cut off
    between its last checkpoint and its end still has them.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._figures: dict[str, float] = {}
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._figures.items()})

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        states, self._states = self._states, None
        if states is not None:
            write_random_state(states[rank() % len(states)])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Asked by every process, for a checkpoint is."""
        states = [read_random_state()]
        if world_size() > 1:
            states = states * world_size()
            dist.all_gather_object(states, read_random_state())
        metrics = self._trainer.callback_metrics if self._trainer is not None else {}
        return {"random": states, "figures": {name: float(value) for name, value in metrics.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states, self._figures = state_dict["random"], state_dict["figures"]


def read_random_state() -> dict[str, Any]:
    """Of this process's generators, as plain values and tensors, which load with `weights_only=True`."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002, what a library may draw from
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def write_random_state(state: dict[str, Any]) -> None:
    """The inverse of `read_random_state`; CUDA's only where there is such a device."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())

"""Processes that a trainer spawns, and how they end."""

import atexit
import os
from typing import Any

from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


class Spawned(_MultiProcessingLauncher):
    """Lightning's launcher, whose processes end once their work is done and their exit handlers have run.

    The interpreter is not taken down: gloo's threads may still let go of tensors of the last collectives then, which aborts the process
    (SIGABRT), and a stage that was trained counts as failed. Destroying the process group first does not prevent it under FSDP, whose
    meshes keep the group. A process that fails ends as ever.
    """

    def _wrapping_function(self, *args: Any, **kwargs: Any) -> None:
        done = False

        def end() -> None:
            if done:
                os._exit(0)

        atexit.register(end)  # handlers run backwards: after those that training has left, wandb's for one
        super()._wrapping_function(*args, **kwargs)
        done = True


def end_spawned(strategy: Any) -> None:
    """Has a strategy that spawns its processes end them so."""
    launcher = strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher) and not isinstance(launcher, Spawned):
        strategy._launcher = Spawned(strategy, launcher._start_method)

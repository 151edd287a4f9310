"""Signals that ask a training to end: nothing that was trained is lost."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from crossvit.callbacks.checkpoint import StageCheckpoint, at_rest
from crossvit.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NOT_VALIDATED = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}
"""The progress of a validation that has begun and has no batch done yet: Lightning runs the whole of it when it resumes."""


class Interrupt(L.Callback):
    """Ctrl-C, SIGTERM or SIGUSR1 ends the training after the step it comes in, with a checkpoint of that step; a second one, more than a
    second later, ends it at once. `Stopped` is what ends it.

    In a validation it ends after the batch, and validates again when resumed; several processes end the validation first, for some may
    have no more batches of it. One process that is asked stops all, at the same step.

    Python raises KeyboardInterrupt wherever the program stands. In a finaliser or a callback of the C++ side it is printed and forgotten,
    and the training goes on; here a signal is noted and never lost.

    A job of SLURM has `Preempted` in its place (callbacks/preempted.py).
    """

    signals = SIGNALS

    def __init__(self) -> None:
        self._asked = 0
        self._when = 0.0
        self._validating = False
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:  # of the CPUs: that of the devices would make every step wait for its kernels
            self._group = dist.new_group(backend="gloo", timeout=trainer.strategy._timeout)
        # after Lightning has put in handlers of its own
        self._before = _install(self._ask, self.signals)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if at_rest(trainer):
            self._leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validating = True
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.world_size == 1 and not trainer.sanity_checking:
            self._leave(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validating = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._validating:
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = NOT_VALIDATED

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._put_back()

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked and time.monotonic() - self._when > 1:  # a group of processes may be told twice
            raise Stopped(number)
        if not self._asked:
            self._asked, self._when = number, time.monotonic()

    def _leave(self, trainer: L.Trainer) -> None:
        number = self._asked
        if trainer.world_size > 1:
            every = torch.tensor(number)
            dist.all_reduce(every, op=dist.ReduceOp.MAX, group=self._group)
            number = int(every)
        if number:
            if isinstance(trainer.checkpoint_callback, StageCheckpoint):
                trainer.checkpoint_callback.save(trainer)
            self._end(trainer, number)

    def _end(self, trainer: L.Trainer, number: int) -> None:
        raise Stopped(number)

    def _put_back(self) -> None:
        before, self._before = self._before, {}
        _put_back(before)


@contextmanager
def handing_on(trainer: L.Trainer) -> Iterator[None]:
    """Signals go on to the processes that the trainer starts; once they have ended, `Stopped` does. A second one kills them.

    Does nothing for a trainer that works in this process.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        yield
        return
    asked: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        if not launcher.procs:
            raise Stopped(number)
        launcher.kill(signal.SIGKILL if asked else number)
        asked.append(number)

    before = _install(hand_on, SIGNALS)
    try:
        yield
    except Exception:
        if not asked:
            raise
    finally:
        _put_back(before)
    if asked:
        raise Stopped(asked[0])


def _install(handler: Callable[[int, Any], None], numbers: tuple[int, ...]) -> dict[int, Any]:
    """The handlers that were there; none outside of the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in numbers}


def _put_back(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)

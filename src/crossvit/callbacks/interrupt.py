"""Ctrl-C that is never lost."""

import signal
import threading
from typing import Any

import lightning as L


class Interrupt(L.Callback):
    """Ctrl-C ends the training after the batch it comes in; a second one ends it at once.

    Python raises KeyboardInterrupt wherever the program stands. In a finaliser or a callback of the C++ side it is printed and forgotten,
    and the training goes on.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, *args: Any) -> None:
        self._leave()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._leave()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _leave(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

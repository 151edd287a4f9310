"""A job of SLURM that has to make room: nothing that was trained is lost."""

import logging
import os
import signal
import subprocess
import threading
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from crossvit.callbacks.checkpoint import StageCheckpoint, at_rest
from crossvit.loggers import close

log = logging.getLogger(__name__)

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # sbatch's --signal; submitit's is SIGUSR2
SIGNALS = (*WARNINGS, signal.SIGTERM)


class Preempted(L.Callback):
    """Within a job of SLURM. A warning, or SIGTERM, ends the training after the step it comes in, with a checkpoint of that step.

    After a warning the loggers are closed and the job is put back into the queue: by submitit where it has sent the job, else from here.
    SIGTERM means that SLURM has decided already, and reaches wandb's own process too: this one leaves at once, before a connection that is
    lost looks like a failure of the job. One process that is told tells all, at the same step.
    """

    def __init__(self) -> None:
        self._told = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # which alone may set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        number = self._agree(trainer) if at_rest(trainer) else 0
        if number:
            if isinstance(trainer.checkpoint_callback, StageCheckpoint):
                trainer.checkpoint_callback.save(trainer)
            self._leave(trainer, number)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._told == signal.SIGTERM:  # what fails now fails for that
            self._leave(trainer, self._told)
        self._put_back()

    def _note(self, number: int, frame: Any) -> None:
        self._told = max(self._told, number)  # SIGTERM is the greatest

    def _agree(self, trainer: L.Trainer) -> int:
        if trainer.world_size == 1:
            return self._told
        told = torch.tensor(self._told, device=trainer.strategy.root_device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return int(told)

    def _leave(self, trainer: L.Trainer, number: int) -> None:
        if number == signal.SIGTERM:
            logging.shutdown()
            os._exit(128 + number)
        before = self._before.get(number)
        self._put_back()
        close(trainer.loggers)
        if callable(before):
            before(number, None)
        elif trainer.is_global_zero:
            log.warning("put back into the queue")
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        raise SystemExit(128 + number)

    def _put_back(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

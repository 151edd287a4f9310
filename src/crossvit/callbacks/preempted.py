"""A job of SLURM that has to make room: nothing that was trained is lost."""

import logging
import os
import signal
import subprocess
from typing import Any

import lightning as L

from crossvit.callbacks.interrupt import SIGNALS, Interrupt
from crossvit.errors import Stopped
from crossvit.loggers import close

log = logging.getLogger(__name__)

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # sbatch's --signal; submitit's is SIGUSR2


class Preempted(Interrupt):
    """`Interrupt` within a job of SLURM, for the signals that SLURM sends.

    A warning puts the job back into the queue once the checkpoint is written and the loggers are closed: by submitit's handler where
    submitit has sent the job, else from here. SIGTERM means that SLURM has decided already, and reaches wandb's own process too: this one
    leaves at once, before a lost connection looks like a failure of the job.
    """

    signals = (*SIGNALS, signal.SIGUSR2)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = max(self._asked, number)  # of these SIGTERM is the greatest, and follows a warning

    def _end(self, trainer: L.Trainer, number: int) -> None:
        if number == signal.SIGTERM:
            _leave_at_once(number)
        if number in WARNINGS:
            before = self._before.get(number)
            self._put_back()
            close(trainer.loggers)
            if callable(before):
                before(number, None)
            elif trainer.is_global_zero:
                log.warning("put back into the queue")
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        raise Stopped(number)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._asked == signal.SIGTERM:  # what fails now fails for that
            _leave_at_once(self._asked)
        super().on_exception(trainer, pl_module, exception)


def _leave_at_once(number: int) -> None:
    logging.shutdown()
    os._exit(128 + number)

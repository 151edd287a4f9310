"""Where a run's figures go, for what Lightning's own loggers leave open."""

from collections.abc import Iterable
from typing import Any


def close(loggers: Iterable[Any]) -> None:
    """Ends the loggers of one stage, so that the next one of the same process opens a wandb run of its own.

    Opens nothing: where spawned processes trained, the run was theirs and is closed already.
    """
    from lightning.pytorch.loggers import WandbLogger

    loggers = list(loggers)
    for logger in loggers:
        logger.save()
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        if wandb.run is not None:
            wandb.run.finish()

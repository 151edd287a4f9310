"""One job of Hydra: a command with a composed config, and what becomes of its errors."""

import errno
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from crossvit.errors import FaultsFound, Stopped, UserError
from crossvit.launch import place
from crossvit.signals import asked

WITHOUT_LIGHTNING = ("report", "data", "sweep")
SECONDS_TO_SPEAK = 20.0
"""How long a process behind the first leaves it to that one to say what is wrong."""


class Job:
    """What Hydra calls once for each job: checks the config, imports the command and runs it.

    An error is reported at once. In a sweep it is raised again, so that the launcher counts the job as failed; the other jobs go on and
    the exit code follows at the end. A single job's error is kept in `failure`, for Hydra would add lines of its own.

    given: the overrides as they stood on the command line, by which a sweep is known. A launcher may send a Job to another machine.
    """

    def __init__(self, command: str, given: Sequence[str] = ()) -> None:
        from crossvit.config.overrides import override_root

        self.command = command
        self.given = [o for o in given if override_root(o) != "hydra"]
        self.failure: Exception | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        from crossvit.config.compose import register_resolvers

        self.__dict__.update(state)
        register_resolvers()  # this process has not come by `main`

    def __call__(self, cfg: Any) -> Any:
        from importlib import import_module

        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from crossvit.config.prepare import prepare
        from crossvit.quick_start import import_lightning

        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        training = False
        try:
            self._check_launch(multirun)
            with self._recorded(cfg) if multirun and place().rank == 0 else nullcontext({}) as record:
                try:
                    cfg = prepare(cfg)
                    if self.command not in WITHOUT_LIGHTNING:
                        import_lightning()
                    training = True
                    value = import_module(f"crossvit.commands.{self.command}").run(cfg)
                except Exception as error:
                    found = _user_error_within(error) or _no_room(error)
                    if found is None or found is error:
                        raise
                    raise found from error
                if isinstance(value, float):
                    record |= {"value": value, "monitor": cfg.stage.monitor}
                return value
        except SystemExit as leaving:  # Lightning turns Ctrl-C into an exit
            if isinstance(leaving.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            if asked:  # a library has made an error of its own of what a signal raised in it
                raise Stopped(asked[0]) from None
            report(error, everywhere=training)
            if multirun:
                raise error from None
            self.failure = error
            return None

    def _check_launch(self, multirun: bool) -> None:
        """Raises UserError for a launcher that would not be asked, and where several processes were started from outside for what one
        does. Ranks behind the first are quiet."""
        from hydra.core.hydra_config import HydraConfig

        rank, world, launcher = place()
        here = "BasicLauncher" in HydraConfig.get().launcher["_target_"]
        if not (multirun or here):
            raise UserError("the config asks for a cluster, and a run without -m stays here: give -m, or cluster=local")
        if world == 1:
            return
        if self.command not in ("train", "pipeline"):
            raise UserError(f"{self.command} is the work of one process: start it without {launcher}")
        if multirun and here:
            raise UserError(
                f"a sweep under {launcher} would run every job in each of {world} processes: start it without, with trainer=ddp, or "
                "with cluster=slurm, or train one configuration at a time"
            )
        if rank > 0:
            logging.getLogger("crossvit").setLevel(logging.ERROR)
            for handler in [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]:
                logging.getLogger().removeHandler(handler)

    def _recorded(self, cfg: Any) -> AbstractContextManager[dict[str, Any]]:
        """The record of this job of a sweep; nothing for a command that has none."""
        from hydra.core.hydra_config import HydraConfig

        from crossvit.sweeps import job_record

        return job_record(cfg, self.given, HydraConfig.get()) if "sweep_name" in cfg else nullcontext({})


def _user_error_within(error: BaseException) -> UserError | None:
    """The UserError behind an error of `instantiate`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    return None


def _no_room(error: BaseException) -> UserError | None:
    """What to say where the disk, or the user's share of it, is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f"{cause.filename}: " if cause.filename else ""
            return UserError(
                f"{where}{cause.strerror}. Make room, or give another place with paths.runs=DIR (paths.data=DIR for data), and start "
                "the same command again: it goes on from what is there."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def report(error: Exception, everywhere: bool = False) -> None:
    """Of processes that were started side by side the first speaks; `everywhere`: each, for it may be alone with its error."""
    from crossvit.redaction import redact

    error.reported_by = os.getpid()
    if not everywhere and not is_first() and _first_has_spoken():
        return
    if isinstance(error, UserError):
        told = f"crossvit: error: {error}\n"
    elif isinstance(error, FaultsFound):
        told = f"crossvit: {error}\n"
    else:
        import traceback

        told = "".join(traceback.format_exception(error))
    sys.stderr.write(redact(told))


def _first_has_spoken() -> bool:
    """Waits for the launcher, which ends all processes once one has left: left at once, the first would be ended before it has spoken.

    False where nobody has ended this process: it may be alone with its error.
    """
    try:
        time.sleep(SECONDS_TO_SPEAK)
    except (Stopped, KeyboardInterrupt):
        asked.clear()
        return True
    return False


def is_first() -> bool:
    """Whether this is the first of processes that were started side by side, or alone."""
    try:
        return place().rank == 0
    except UserError:  # it may be this one that is to be told
        return True


def reported(error: Exception) -> bool:
    """Whether this process has shown the error already: one that comes back from a cluster's job has been shown elsewhere only."""
    return getattr(error, "reported_by", None) == os.getpid()

"""`crossvit <command> [overrides]`: the entry point. Nothing heavy is imported until a config is composed and validated."""

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from crossvit.errors import FaultsFound, Stopped, UserError
from crossvit.launch import place

COMMANDS = {
    "pipeline": "train a chain of stages, test it, and print the result table",
    "train": "train one stage, and the stages before it where the store does not hold them",
    "evaluate": "test trained weights and print the result table",
    "study": "compare arms of a recipe over seeds; started twice, two processes share the cells",
    "report": "tables, plots and claims of a study, from the cells that are there",
    "sweep": "how the jobs of a sweep fare, and one table of what they have measured: crossvit sweep status, sweep report",
    "data": "make the embedded corpus, check a dataset, or write one into shards: crossvit data make scenes, data verify, data pack",
}
WITHOUT_LIGHTNING = ("report", "data", "sweep")
DATA_COMMANDS = {
    "pack": "write a dataset into tar shards, in webdataset form; the same command goes on where it was cut off",
    "verify": "say what a dataset holds and what is wrong with it; exit code 1 where there is a fault",
}
PLUGINS = {"hydra_optuna_sweeper": "tune", "hydra_submitit_launcher": "slurm"}
"""Plugins of Hydra and the extra that each comes with."""
SWEEP_USAGE = "crossvit sweep status [NAME or DIR], crossvit sweep report [NAME or DIR]"
DATA_USAGE = "crossvit data make scenes, crossvit data verify data=NAME data.root=DIR, crossvit data pack data=NAME data.root=DIR out=DIR"


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, 1 for faults that a check found, 2 for what the user can put right, 128 + its number
    after a signal: 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _signals():
            return _dispatch(arguments)
    except Stopped as stop:
        print(
            f"crossvit: ended by {signal.Signals(stop.number).name}; the same command goes on from here",
            file=sys.stderr,
        )
        return stop.code
    except UserError as error:
        if not _reported(error):
            _report(error)
        return 2
    except KeyboardInterrupt:
        print("crossvit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `crossvit train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _reported(error):
            raise
        return 1


_asked: list[int] = []
"""The signals that have asked this command to end."""


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 raise `Stopped` where nobody else answers them; a training does (`callbacks/interrupt.py`).

    Files appear whole or not at all, so every place is one to leave at. Under SLURM the handlers are Lightning's and submitit's.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    if "SLURM_JOB_ID" in os.environ or threading.current_thread() is not threading.main_thread():
        numbers = ()

    _asked.clear()

    def stop(number: int, frame: Any) -> None:
        _asked.append(number)
        raise Stopped(number)

    free = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in free:
        signal.signal(number, stop)
    try:
        yield
        if _asked:  # raised where Python drops what is raised, e.g. while an object is taken down
            raise Stopped(_asked[0])
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def _dispatch(arguments: list[str]) -> int:
    from crossvit.help import command_page, front_page

    if not arguments or arguments[0] in ("-h", "--help"):
        print(front_page(COMMANDS))
        return 0
    if arguments[0] == "--version":
        from crossvit import __version__

        print(f"crossvit {__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        from crossvit.config.explain import suggest

        raise UserError(f"no command {command!r}.{suggest(command, COMMANDS)}")
    if "-h" in rest or "--help" in rest:
        own = rest[0] if command == "data" and rest[0] in DATA_COMMANDS else None
        print(command_page(own, DATA_COMMANDS[own]) if own else command_page(command, COMMANDS[command]))
        return 0
    command, rest = primary_and_overrides(command, rest)
    _run_hydra(command, rest)
    return 0


def primary_and_overrides(command: str, rest: list[str]) -> tuple[str, list[str]]:
    """Primary config and overrides of a command line. Raises UserError for words that the command does not take."""
    special = {"data": data_command, "sweep": sweep_command}
    return special[command](rest) if command in special else (command, rest)


def sweep_command(rest: list[str]) -> tuple[str, list[str]]:
    """Primary config and overrides of the words after `crossvit sweep`: `status NAME` becomes `show=status sweep_name=NAME`.

    Raises UserError for other words.
    """
    if rest and rest[0] in ("status", "report"):
        show, *rest = rest
        named = rest and not rest[0].startswith("-") and "=" not in rest[0]
        return "sweep", [f"show={show}", *([f"sweep_name='{rest[0]}'"] if named else []), *rest[bool(named) :]]
    if rest and rest[0].startswith("-"):
        return "sweep", rest  # a flag of Hydra
    raise UserError(f"usage: {SWEEP_USAGE}")


def data_command(rest: list[str]) -> tuple[str, list[str]]:
    """Primary config and overrides of the words after `crossvit data`: `make scenes` becomes `make=scenes`, `pack` and `verify` have
    configs of their own.

    Raises UserError for other words.
    """
    if rest and rest[0] in DATA_COMMANDS:
        return rest[0], rest[1:]
    if len(rest) > 1 and rest[0] == "make" and not rest[1].startswith("-") and "=" not in rest[1]:
        return "data", [f"make={rest[1]}", *rest[2:]]
    if rest and rest[0].startswith("-"):
        return "data", rest  # a flag of Hydra, e.g. --cfg job
    raise UserError(f"usage: {DATA_USAGE}")


def _run_hydra(command: str, arguments: list[str]) -> None:
    """Hands over to Hydra's own entry point: one job, a sweep (-m), --cfg, --info and its other flags."""
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser

    from crossvit.config.compose import config_directory, register_resolvers
    from crossvit.config.explain import COMPOSITION_ERRORS, explain

    # of Hydra 1.4, which asks for what stages/build.py does: saying which classes may be built
    warnings.filterwarnings("ignore", message=r"(?s).*(_execution_whitelist_|version_base parameter)")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them and leaving with code 1
    version.setbase("1.3")
    register_resolvers()
    parser = get_args_parser()
    parser.prog = f"crossvit data {command}" if command in DATA_COMMANDS else f"crossvit {command}"
    args = parser.parse_intermixed_args(arguments)
    if args.config_path is not None:
        args.config_path = str(Path(args.config_path).resolve())
    if not (args.run or args.cfg or args.info) and any(map(_asks_for_jobs, args.overrides)):
        args.multirun = True
    job = Job(command, args.overrides)
    try:
        _run_hydra(args, parser, job, config_path=str(config_directory()), config_name=command)
    except (
        *COMPOSITION_ERRORS,
        ValueError,
    ) as error:  # a ValueError of Hydra: flags or overrides that exclude each other
        if _reported(error):
            raise
        raise UserError(explain(error, args.config_name or command, args.overrides, args.config_dir)) from error
    except RuntimeError as error:  # a launcher or a sweeper that comes with an extra, or sbatch takes no job
        if refusal := [line for line in str(error).splitlines() if line.startswith("sbatch: ")]:
            raise UserError(f"cluster=slurm: {refusal[-1]}; sinfo says whether SLURM answers here") from None
        extra = next(
            (name for plugin, name in PLUGINS.items() if f"class : 'hydra_plugins.{plugin}." in str(error)), None
        )
        if extra is None:
            raise
        raise UserError(f"needs a package that is not installed: pip install crossvit[{extra}]") from None
    except OSError as error:  # the run directory, which Hydra makes
        if _reported(error) or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; paths.runs=DIR puts the runs elsewhere") from error
    finally:
        _point_to_record()
    if job.failure is not None:
        raise job.failure


def _asks_for_jobs(override: str) -> bool:
    """`sweep=` and any `cluster=` but the local one stand for -m: what they say is about jobs that are started from here."""
    key, _, option = override.partition("=")
    return (key == "sweep" and option != "null") or (key == "cluster" and option not in ("local", "null"))


def _point_to_record() -> None:
    """After a sweep: how its jobs have fared."""
    from crossvit.sweeps import Plan, Sweep

    if Plan.written is not None:
        sweep, Plan.written = Sweep.read(Plan.written), None
        count = ", ".join(f"{number} {state}" for state, number in sweep.count().items()) or "no job"
        print(f"sweep {sweep.path.name}: {count}; crossvit sweep status {sweep.path.name}", file=sys.stderr)


class Job:
    """What Hydra calls once for each job: checks the config, imports the command and runs it.

    An error is reported at once. In a sweep it is raised again, so that the launcher counts the job as failed; the other jobs go on and
    the exit code follows at the end. A single job's error is kept in `failure`, for Hydra would add lines of its own.

    given: the overrides as they stood on the command line, by which a sweep is known. A launcher may send a Job to another machine.
    """

    def __init__(self, command: str, given: Sequence[str] = ()) -> None:
        self.command = command
        self.given = [o for o in given if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]
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
            if _asked:  # a library has made an error of its own of what a signal raised in it
                raise Stopped(_asked[0]) from None
            _report(error, everywhere=training)
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
    """The UserError behind an error of `instantiate`, or one that a spawned training process died of."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    if type(error).__name__ == "ProcessRaisedException" and marker in str(error):
        return UserError(str(error).rpartition(marker)[2].strip())
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


def _report(error: Exception, everywhere: bool = False) -> None:
    """Of processes that were started side by side the first speaks; `everywhere`: each, for it may be alone with its error."""
    from crossvit.redaction import redact

    error.reported_by = os.getpid()
    if not everywhere and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    if isinstance(error, UserError):
        told = f"crossvit: error: {error}\n"
    elif isinstance(error, FaultsFound):
        told = f"crossvit: {error}\n"
    else:
        import traceback

        told = "".join(traceback.format_exception(error))
    sys.stderr.write(redact(told))


def _reported(error: Exception) -> bool:
    """Whether this process has shown the error already: one that comes back from a cluster's job has been shown elsewhere only."""
    return getattr(error, "reported_by", None) == os.getpid()

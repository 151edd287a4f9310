"""`crossvit <command> [overrides]`: the entry point. Nothing heavy is imported until a config is composed and validated."""

import os
import sys
from pathlib import Path
from typing import Any

from crossvit.errors import FaultsFound, UserError

COMMANDS = {
    "pipeline": "train a chain of stages, test it, and print the result table",
    "train": "train one stage, and the stages before it where the store does not hold them",
    "evaluate": "test trained weights and print the result table",
    "study": "compare arms of a recipe over seeds; started twice, two processes share the cells",
    "report": "tables, plots and claims of a study, from the cells that are there",
    "data": "make the embedded corpus, check a dataset, or write one into shards: crossvit data make scenes, data verify, data pack",
}
WITHOUT_LIGHTNING = ("report", "data")
DATA_COMMANDS = {
    "pack": "write a dataset into tar shards, in webdataset form; the same command goes on where it was cut off",
    "verify": "say what a dataset holds and what is wrong with it; exit code 1 where there is a fault",
}
DATA_USAGE = "crossvit data make scenes, crossvit data verify data=NAME data.root=DIR, crossvit data pack data=NAME data.root=DIR out=DIR"


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0, 1 for faults that a check found, 2 for what the user can put right, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
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
    if command == "data":
        command, rest = data_command(rest)
    _run_hydra(command, rest)
    return 0


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

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them and leaving with code 1
    version.setbase("1.3")
    register_resolvers()
    parser = get_args_parser()
    parser.prog = f"crossvit data {command}" if command in DATA_COMMANDS else f"crossvit {command}"
    args = parser.parse_intermixed_args(arguments)
    if args.config_path is not None:
        args.config_path = str(Path(args.config_path).resolve())
    job = Job(command)
    try:
        _run_hydra(args, parser, job, config_path=str(config_directory()), config_name=command)
    except (
        *COMPOSITION_ERRORS,
        ValueError,
    ) as error:  # a ValueError of Hydra: flags or overrides that exclude each other
        if _reported(error):
            raise
        raise UserError(explain(error, args.config_name or command, args.overrides, args.config_dir)) from error
    except OSError as error:  # the run directory, which Hydra makes
        if _reported(error) or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; paths.runs=DIR puts the runs elsewhere") from error
    if job.failure is not None:
        raise job.failure


class Job:
    """What Hydra calls once for each job: checks the config, imports the command and runs it.

    An error is reported at once. In a sweep it is raised again, so that the launcher counts the job as failed; the other jobs go on and
    the exit code follows at the end. A single job's error is kept in `failure`, for Hydra would add lines of its own.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.failure: Exception | None = None

    def __call__(self, cfg: Any) -> Any:
        from importlib import import_module

        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from crossvit.config.prepare import prepare
        from crossvit.quick_start import import_lightning

        try:
            cfg = prepare(cfg)
            if self.command not in WITHOUT_LIGHTNING:
                import_lightning()
            return import_module(f"crossvit.commands.{self.command}").run(cfg)
        except SystemExit as leaving:  # Lightning turns Ctrl-C into an exit
            if isinstance(leaving.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            failure = _user_error_within(error) or error
            _report(failure)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise failure from None
            self.failure = failure
            return None


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


def _report(error: Exception) -> None:
    if isinstance(error, UserError):
        print(f"crossvit: error: {error}", file=sys.stderr)
    elif isinstance(error, FaultsFound):
        print(f"crossvit: {error}", file=sys.stderr)
    else:
        import traceback

        traceback.print_exception(error)
    error.reported_by = os.getpid()


def _reported(error: Exception) -> bool:
    """Whether this process has shown the error already: one that comes back from a cluster's job has been shown elsewhere only."""
    return getattr(error, "reported_by", None) == os.getpid()

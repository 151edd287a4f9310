"""`crossvit <command> [overrides]`: the entry point. Nothing heavy is imported until a config is composed and validated."""

import os
import signal
import sys
import warnings
from pathlib import Path

from crossvit.errors import Stopped, UserError
from crossvit.job import Job, is_first, report, reported
from crossvit.signals import answered

COMMANDS = {
    "pipeline": "train a chain of stages, test it, and print the result table",
    "train": "train one stage, and the stages before it where the store does not hold them",
    "evaluate": "test trained weights and print the result table",
    "study": "compare arms of a recipe over seeds; started twice, two processes share the cells",
    "report": "tables, plots and claims of a study, from the cells that are there",
    "sweep": "how the jobs of a sweep fare, and one table of what they have measured: crossvit sweep status, sweep report",
    "data": "make the embedded corpus, check a dataset, or write one into shards: crossvit data make scenes, data verify, data pack",
}
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
        with answered():
            return _dispatch(arguments)
    except Stopped as stop:
        if is_first():
            name = signal.Signals(stop.number).name
            print(f"crossvit: ended by {name}; the same command goes on from what is kept", file=sys.stderr)
        return stop.code
    except UserError as error:
        if not reported(error):
            report(error)
        return 2
    except KeyboardInterrupt:
        print("crossvit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `crossvit train --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not reported(error):
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
    command, rest = primary_and_overrides(command, rest)
    _hand_over(command, rest)
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


def _hand_over(command: str, arguments: list[str]) -> None:
    """Hands over to Hydra's own entry point: one job, a sweep (-m), --cfg, --info and its other flags."""
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser

    from crossvit.config.compose import register_resolvers
    from crossvit.config.explain import COMPOSITION_ERRORS, explain
    from crossvit.config.place import config_directory
    from crossvit.sweeps import check_swept

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
    if args.multirun:
        check_swept(args.overrides)
    job = Job(command, args.overrides)
    try:
        _run_hydra(args, parser, job, config_path=str(config_directory()), config_name=command)
    except (
        *COMPOSITION_ERRORS,
        ValueError,
    ) as error:  # a ValueError of Hydra: flags or overrides that exclude each other
        if reported(error):
            raise
        raise UserError(explain(error, args.config_name or command, args.overrides, args.config_dir)) from error
    except RuntimeError as error:  # a launcher or a sweeper that comes with an extra, or sbatch takes no job
        if refusal := [line for line in str(error).splitlines() if line.startswith("sbatch: ")]:
            raise UserError(f"cluster=slurm: {refusal[-1]}; sinfo says whether SLURM answers here") from None
        if 'Could not detect "srun"' in str(error):  # submitit's
            raise UserError(
                "cluster=slurm: there is no srun here: start it on a machine of the cluster, or without it"
            ) from None
        extra = next(
            (name for plugin, name in PLUGINS.items() if f"class : 'hydra_plugins.{plugin}." in str(error)), None
        )
        if extra is None:
            raise
        raise UserError(f"needs a package that is not installed: pip install crossvit[{extra}]") from None
    except OSError as error:  # the run directory, which Hydra makes
        if reported(error) or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}; paths.runs=DIR puts the runs elsewhere") from error
    finally:
        _point_to_record()
    if job.failure is not None:
        raise job.failure


def _asks_for_jobs(override: str) -> bool:
    """`sweep=` and any `cluster=` but the local one stand for -m: what they say is about jobs that are started from here."""
    if override.startswith("~"):
        return False
    from crossvit.config.overrides import override_key

    key, option = override_key(override), override.partition("=")[2]
    return (key == "sweep" and option != "null") or (key == "cluster" and option not in ("local", "null"))


def _point_to_record() -> None:
    """After a sweep: how its jobs have fared."""
    from crossvit.sweeps import Plan, Sweep

    if Plan.written is not None:
        sweep, Plan.written = Sweep.read(Plan.written), None
        count = ", ".join(f"{number} {state}" for state, number in sweep.count().items()) or "no job"
        print(f"sweep {sweep.path.name}: {count}; crossvit sweep status {sweep.path.name}", file=sys.stderr)

"""The record of a sweep on disk: what was asked for, and how each of its jobs fares.

    <paths.runs>/sweeps/<name>/plan.json            command, what is swept, the overrides of every job
    <paths.runs>/sweeps/<name>/jobs/<digest>.json   one job: state, value, error, run directory; its lock is held while it runs

The process that starts a sweep writes the plan, each job its own file, on whatever machine it runs. Nothing heavy is imported.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from crossvit.config.explain import suggest
from crossvit.config.overrides import override_key, override_root
from crossvit.errors import UserError
from crossvit.report.atomic import write_atomically

SWEEPS, PLAN = "sweeps", "plan.json"
STATES = ("finished", "running", "failed", "interrupted", "missing")
UNNAMED = ("paths", "logger", "cluster", "run_name", "sweep_name", "hydra")
"""What a sweep is not known by: where things lie and where it runs."""


@dataclass(frozen=True)
class SweepJob:
    """One job. `state` is one of STATES; `label` holds what tells it from the others; `value` is the figure that its stage watches."""

    overrides: tuple[str, ...]
    label: str
    state: str
    value: float | None = None
    monitor: str | None = None
    seconds: float | None = None
    error: str | None = None
    run_dir: Path | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep as its record tells it."""

    path: Path
    command: str
    swept: tuple[str, ...]
    jobs: tuple[SweepJob, ...]

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """From its folder. A tuned sweep has no plan of jobs: those that were drawn are listed."""
        try:
            plan = json.loads((path / PLAN).read_text(encoding="utf-8"))
            records = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in path.glob("jobs/*.json")}
            planned = plan["jobs"]
            if planned is None:
                drawn = sorted(records.values(), key=lambda record: (record["num"], record["started"]))
                planned = [record["overrides"] for record in drawn]
            swept = tuple(plan["swept"])
            jobs = tuple(_job(path, tuple(job), swept, records.get(digest(job))) for job in planned)
            return cls(path, plan["command"], swept, jobs)
        except (OSError, ValueError, LookupError, TypeError):
            raise UserError(f"{path / PLAN} is damaged: start the sweep again, which writes it anew") from None

    def count(self) -> dict[str, int]:
        """State -> number of jobs, those alone that occur."""
        found = [job.state for job in self.jobs]
        return {state: found.count(state) for state in STATES if state in found}


def find(runs: Path, name: str | None) -> Path:
    """The folder of a sweep: by its name, as a directory, or None for the one that was started last.

    Raises UserError where there is none.
    """
    known = sorted((runs / SWEEPS).glob(f"*/{PLAN}"), key=lambda plan: plan.stat().st_mtime)
    if name is None:
        if not known:
            raise UserError(f"{runs / SWEEPS} holds no sweep: start one with crossvit train -m, or name paths.runs=DIR")
        return known[-1].parent
    for place in (runs / SWEEPS / name, Path(name)):
        if (place / PLAN).is_file():
            return place
    raise UserError(f"no sweep {name!r} in {runs / SWEEPS}.{suggest(name, [plan.parent.name for plan in known])}")


def sweep_folder(cfg: DictConfig, command: str, given: Sequence[str]) -> Path:
    """Where the record of a sweep lies. given: the overrides as they stood on the command line."""
    return (
        Path(cfg.paths.runs).resolve()
        / SWEEPS
        / str(cfg.sweep_name or automatic_name(command, given)).replace("/", "_")
    )


def automatic_name(command: str, given: Sequence[str]) -> str:
    """The same for the same command: the option of conf/sweep or the keys that are swept, and a digest of all that was asked for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(given))
    named = [o for o in parsed if override_root(o.key_or_group) not in UNNAMED]
    options = [str(o.value()) for o in named if o.key_or_group == "sweep"]
    keys = options or sorted(o.key_or_group.rpartition(".")[2] for o in named if o.is_sweep_override())
    text = "\n".join([command, *sorted(str(o.input_line) for o in named)])
    return "-".join([*keys[:3], hashlib.sha256(text.encode()).hexdigest()[:6]])


def check_swept(given: Sequence[str]) -> None:
    """Raises UserError for a sweep over what neither a job nor its run directory is known by: the jobs would write over each other."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(given))
    except OverrideParseException:  # Hydra tells of it
        return
    for override in parsed:
        key = override.get_key_element()
        if override.is_sweep_override() and override_root(key) in UNNAMED:
            raise UserError(
                f"{key} says where things lie, not what is trained, and cannot be swept: start one command for each value"
            )


def digest(overrides: Sequence[str]) -> str:
    """The name of a job's file: by what it was asked for, so that its number may change. Where it runs does not count."""
    kept = sorted(o for o in overrides if override_root(o) not in UNNAMED)
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


class Plan(Callback):
    """Hydra calls this before the first job of a sweep: writes what was asked for."""

    written: Path | None = None
    """The sweep that this process has started last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        folder = sweep_folder(config, config.command, given)
        swept, jobs = planned_jobs(config, given)
        plan = {"command": config.command, "overrides": given, "swept": swept, "jobs": jobs}
        write_atomically(folder / PLAN, json.dumps(plan, indent=1).encode())
        Plan.written = folder


def planned_jobs(config: DictConfig, given: list[str]) -> tuple[list[str], list[list[str]] | None]:
    """The keys that are swept, and the overrides of every job; None for jobs that are drawn one after the other."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True) if config.hydra.sweeper.params else {}
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *given])
    last = {override.get_key_element(): override for override in parsed}
    swept = [key for key, override in last.items() if override.is_sweep_override()]
    if not str(config.hydra.sweeper["_target_"]).endswith("BasicSweeper"):
        return swept, None
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return swept, [list(job) for job in batch]


@contextmanager
def job_record(cfg: DictConfig, given: Sequence[str], job: DictConfig) -> Iterator[dict[str, Any]]:
    """Keeps a job's file while it runs: `running`, then `finished` or `failed`. What the context puts into the dict is kept.

    given: the overrides as they stood on the command line. job: Hydra's own config of the job. A job that another process runs at the
    same time keeps the file that it has.
    """
    from filelock import FileLock, Timeout

    folder = sweep_folder(cfg, cfg.command, given)
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)
    file = folder / "jobs" / f"{digest(overrides)}.json"
    record: dict[str, Any] = {
        "overrides": overrides,
        "num": job.job.num,
        "state": "running",
        "host": socket.gethostname(),
    }
    record |= {"run_dir": os.path.relpath(job.runtime.output_dir, folder), "started": time.time()}
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield {}
        return
    try:
        _write(file, record)
        try:
            yield record
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            record |= {
                "state": "failed",
                "error": first if isinstance(error, UserError) else f"{type(error).__name__}: {first}",
            }
            raise
        else:
            record["state"] = "finished"
        finally:
            if (
                record["state"] != "running"
            ):  # Ctrl-C and signals leave it so: without its lock it counts as interrupted
                record["seconds"] = round(time.time() - record["started"], 1)
                _write(file, record)
    finally:
        lock.release()


def _write(file: Path, record: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(record, indent=1).encode())


def _job(path: Path, overrides: tuple[str, ...], swept: tuple[str, ...], record: dict[str, Any] | None) -> SweepJob:
    keys = {override: override_key(override) for override in overrides}
    label = " ".join(override for override in overrides if keys[override] in swept) or "(one job)"
    if record is None:
        return SweepJob(overrides, label, "missing")
    state = record["state"]
    if state == "running" and not _held(path / "jobs" / f"{digest(overrides)}.lock"):
        state = "interrupted"
    details = {key: record.get(key) for key in ("value", "monitor", "seconds", "error")}
    return SweepJob(overrides, label, state, **details, run_dir=(path / record["run_dir"]).resolve())


def _held(lock: Path) -> bool:
    """Whether a living process holds the lock of a job; the system takes it back from one that dies."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True

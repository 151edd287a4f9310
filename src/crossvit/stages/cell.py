"""One cell of a study: an arm with a seed, trained, tested, and kept as one json file that says where it comes from."""

import hashlib
import json
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from crossvit.config import StageConfig, chain_configs
from crossvit.config.overrides import override_key, override_root
from crossvit.errors import Diverged, UserError
from crossvit.redaction import redact
from crossvit.report.atomic import write_atomically
from crossvit.report.cells import Cell
from crossvit.report.study import cell_file
from crossvit.report.table import Table
from crossvit.stages.fingerprint import is_neutral, what_matters
from crossvit.stages.provenance import environment, timestamp
from crossvit.stages.store import StoredStage

log = logging.getLogger(__name__)


def ensure_cell(cfg: DictConfig, overrides: list[str]) -> bool:
    """Takes the cell of this arm and seed where its file is there and its settings are those of today; else runs it and writes the file.

    Returns whether it was run. A cell that another process is running is skipped, not waited for. Of a training that has diverged the file
    says so in the place of figures.
    """
    path = cell_file(Path(cfg.paths.study), cfg.arm.name, cfg.seed)
    configs = chain_configs(overrides, cfg.command)
    settings = settings_of(configs, cfg)
    with _alone(Path(cfg.paths.run_dir) / "cell.lock") as alone:
        if not alone:
            log.info("%s: another process runs it, skipped", cfg.run_name)
            return False
        if path.is_file():
            if _settings_in(path) == settings:
                log.info("%s: taken from %s", cfg.run_name, path)
                return False
            log.info("%s: its settings have changed, it is run again", cfg.run_name)
        where = {"study": cfg.study.name, "arm": cfg.arm.name, "seed": cfg.seed, **environment()}
        where |= {"command": command_line(cfg, overrides), "settings": settings}
        try:
            content = where | _run(cfg, overrides, configs)
        except Diverged as error:  # a result too: left out, it would make the arm look better
            log.error("%s: %s", cfg.run_name, error)
            content = where | {"failed": _first_line(error, cfg)}
        content["finished"] = timestamp()
        write_atomically(path, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())
    return True


def settings_of(configs: list[StageConfig], cfg: DictConfig) -> str:
    """A digest of all that decides a cell's figures but the seed and the code: the stages of its chain, the corpus, the suite."""
    stages = []
    for config in configs:
        matters = what_matters(config.cfg)
        del matters["seed"]
        for data in (
            matters["data"],
            *(source["data"] for source in matters["data"].get("sources", {}).values() if source),
        ):
            data.pop("seed", None)
        stages.append([config.option, matters])
    suite = OmegaConf.to_container(cfg.suite, resolve=True)
    suite = {
        name: entry
        and {"evaluator": entry["evaluator"], "data": {k: v for k, v in entry["data"].items() if k != "seed"}}
        for name, entry in suite.items()
    }
    for entry in filter(None, suite.values()):
        entry["data"] = {
            key: value
            for key, value in entry["data"].items()
            if not key.endswith(("root", "roots", "dir", "_file")) and not is_neutral(key, value)
        }
    scenes = {key: value for key, value in OmegaConf.to_container(cfg.scenes, resolve=True).items() if key != "folder"}
    text = json.dumps([stages, suite, scenes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changes(configs: list[StageConfig], overrides: list[str], cfg: DictConfig) -> dict[str, Any]:
    """What the last stage has otherwise than that of the study's base arm: key -> value, None where the key is gone."""
    shared = [override for override in overrides if override_key(override) != "arm"]
    base = chain_configs([*shared, f"arm={cfg.study.base}"], cfg.command)
    plain, other = (what_matters(found[-1].cfg) for found in (configs, base))
    here, there = dict(_leaves(plain)), dict(_leaves(other))
    return {key: here.get(key) for key in here | there if here.get(key) != there.get(key)}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


def _run(cfg: DictConfig, overrides: list[str], configs: list[StageConfig]) -> dict[str, Any]:
    from crossvit.stages.chain import run_chain
    from crossvit.stages.evaluating import check_suite, evaluate_stages

    check_suite(cfg)
    links = run_chain(overrides, cfg.command)
    last = links[-1].stored
    cells = [replace(cell, row=cfg.arm.name) for cell in evaluate_stages([last], cfg.suite, cfg.paths)]
    curve = last.provenance.get("validation") or ()
    stages = [_stage(link.config.name, link.stored) for link in links]
    return {
        "changes": changes(configs, overrides, cfg),
        "fingerprint": last.fingerprint,
        "stages": stages,
        **{key: stages[-1][key] for key in ("steps", "seconds", "flops", "pair_passes", "flops_per_pair")},
        "chain_flops": sum(stage["flops"] for stage in stages) if all(stage["flops"] for stage in stages) else None,
        "monitor": cfg.stage.monitor,
        "mode": cfg.stage.mode,
        "validation": [[p["step"], p[cfg.stage.monitor]] for p in curve if cfg.stage.monitor in p],
        "checks": _checks(last, {cell.task for cell in cells}),
        "table": [asdict(cell) for cell in finite(cells)],
    }


def command_line(cfg: DictConfig, overrides: list[str]) -> str:
    """The command that runs this cell alone, without the places on this machine."""
    given = [override for override in overrides if override_root(override) not in ("paths", "run_name")]
    return shlex.join(["crossvit", cfg.command, *map(redact, given)])


def finite(cells: list[Cell]) -> list[Cell]:
    """The cells with None in the place of NaN, which json does not know."""
    return Table(cells).cells


def _first_line(error: Exception, cfg: DictConfig) -> str:
    """What has gone wrong, without the advice below it and the places on this machine."""
    return redact(str(error).splitlines()[0]).replace(f"{Path(cfg.paths.store).resolve()}/", "")


def _checks(stored: StoredStage, tasks: set[str]) -> dict[str, dict[str, bool]]:
    """What the attacks of the suite have found out about themselves: task -> check -> passed."""
    files = {task: stored.path / "evaluations" / f"{task}.json" for task in sorted(tasks)}
    found = {task: json.loads(path.read_text(encoding="utf-8")) for task, path in files.items() if path.is_file()}
    return {task: content["checks"] for task, content in found.items() if "checks" in content}


def _stage(name: str, stored: StoredStage) -> dict[str, Any]:
    """What came out of a stage and what it has cost: over all its steps, as counted at its start; None where nothing was counted."""
    record = stored.provenance
    compute, steps = record.get("compute") or {}, record["steps"]
    per_step = {key: compute.get(f"{key}_per_step") for key in ("flops", "pair_passes")}
    return {
        "stage": name,
        "fingerprint": stored.fingerprint,
        "weights": stored.digest,
        "git_commit": record["git_commit"],
        "steps": steps,
        "seconds": record["seconds"],
        **{key: None if value is None else value * steps for key, value in per_step.items()},
        "flops_per_pair": compute.get("flops_per_pair"),
    }


def _settings_in(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is no cell of a study: take it away, and the command writes it anew") from None


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process alone holds the lock, which the system takes back from a process that dies."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()

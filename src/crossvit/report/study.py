"""The cells of a study, read back: one json file an arm and a seed, and what the arms are compared by."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from crossvit.errors import UserError
from crossvit.metrics import Difference, holm, paired_difference
from crossvit.report.robustness import ATTACKED

Cells = Mapping[tuple[str, int], dict[str, Any]]  # (arm, seed) -> content of a cell's file
Than = str | float | Mapping[str, str]  # an arm, a number, or {"metric": another metric of the same arm}


class Context(NamedTuple):
    """What one figure of the table has in common over all arms: number of candidates and chance."""

    candidates: int | None
    chance: float | None


@dataclass(frozen=True)
class Plan:
    """What a study consists of; the keys of conf/study."""

    name: str
    base: str
    arms: Sequence[str]
    seeds: Sequence[int]
    longer: Sequence[str]
    primary: str  # the metric whose table comes first, and that says who has left the plateau
    metrics: Mapping[str, Sequence[str]]
    titles: Mapping[str, str]  # of the metrics, as printed; a metric without one goes by its name
    escaped: float
    goal: float
    families: Mapping[str, Sequence[str] | None]
    claims: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, study: Mapping[str, Any]) -> "Plan":
        """From the node `study` of a config, without metrics and claims that are null. Raises UserError where a title is of no metric."""
        for name in study["titles"] or {}:
            if name not in (study["metrics"] or {}):
                raise UserError(f"study.titles.{name}: there is no such metric in study.metrics")
        metrics = {name: figures for name, figures in (study["metrics"] or {}).items() if figures is not None}
        claims = {name: claim for name, claim in (study["claims"] or {}).items() if claim is not None}
        given = {key: study[key] or {} for key in ("titles", "families")} | {"longer": study["longer"] or []}
        return cls(**{**study, **given, "metrics": metrics, "claims": claims})

    @property
    def ranked(self) -> list[str]:
        """The metrics, the primary one first."""
        return [self.primary, *(metric for metric in self.metrics if metric != self.primary)]

    def title(self, metric: str) -> str:
        """How a metric is printed."""
        return self.titles.get(metric, metric)

    def check(self, options: Collection[str]) -> None:
        """Raises UserError, naming the key, where a name stands for nothing or a seed or an arm stands twice. options: all arms
        there are."""
        for key in ("arms", "seeds"):
            values = getattr(self, key)
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise UserError(f"study.{key}={values}: give a list")
            values = list(values)
            if not values or len(set(values)) < len(values):
                raise UserError(f"study.{key}={values}: name at least one, and each once")
        if not self.metrics:
            raise UserError("study.metrics: name at least one, e.g. vlr: [vlr/Acc@1]")
        if self.primary not in self.metrics:
            raise UserError(f"study.primary={self.primary}: choose one of study.metrics ({', '.join(self.metrics)})")
        known = {"study.base": [self.base], "study.longer": self.longer}
        known |= {f"study.families.{name}": arms or () for name, arms in self.families.items()}
        for key, arms in known.items():
            unknown = [arm for arm in arms if arm not in self.arms]
            if unknown:
                raise UserError(f"{key}: {unknown[0]!r} is not in study.arms")
        compared = {f"study.claims.{name}": claim.get("evidence") or () for name, claim in self.claims.items()}
        named = [("study.arms", arm) for arm in self.arms]
        named += [(key, one.get(side)) for key, ones in compared.items() for one in ones for side in ("arm", "than")]
        for key, arm in named:
            if isinstance(arm, str) and arm not in options:
                raise UserError(f"{key}: there is no arm {arm!r}; the arms are {', '.join(sorted(options))}")
        placed = [arm for arms in self.families.values() for arm in arms or ()]
        twice = [arm for arm in placed if placed.count(arm) > 1]
        if twice:
            raise UserError(f"study.families: {twice[0]!r} stands in two; an arm is corrected for once")
        for name, selectors in self.metrics.items():
            good = (
                isinstance(selectors, Sequence) and not isinstance(selectors, str) and all("/" in s for s in selectors)
            )
            if not good or not selectors:
                raise UserError(f"study.metrics.{name}={selectors}: give a list of task/metric, e.g. [vlr/Acc@1]")
        for key in ("escaped", "goal"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"study.{key}={value}: give a share between 0 and 1")
        for name, claim in self.claims.items():
            where = f"study.claims.{name}"
            if claim.get("says") is None or claim.get("evidence") is None:
                raise UserError(f"{where}: write what it says, and its evidence (a list, which may be empty)")
            for evidence in claim["evidence"]:
                lacking = [key for key in ("arm", "expected", "than", "metric") if key not in evidence]
                if lacking:
                    raise UserError(f"{where}: the evidence lacks {', '.join(lacking)}")
                than = evidence["than"]
                if isinstance(than, Mapping) and set(than) != {"metric"}:
                    raise UserError(f"{where}: than {than!r}: name an arm, a number or {{metric: NAME}}")
                for metric in (evidence["metric"], *(than.values() if isinstance(than, Mapping) else ())):
                    if metric not in self.metrics:
                        raise UserError(f"{where}: metric {metric!r} is not in study.metrics")
                if evidence["expected"] not in ("higher", "lower"):
                    raise UserError(f"{where}: expected {evidence['expected']!r}: write higher or lower")
                margin = evidence.get("margin", 0)
                if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
                    raise UserError(f"{where}: margin {margin!r}: give a number of at least 0")

    def check_cell(self, arm: str, seed: int) -> None:
        """Raises UserError where the study has no such cell: no report would show it."""
        for key, value, known in (("arm", arm, self.arms), ("seed", seed, self.seeds)):
            if value not in known:
                listed = ", ".join(map(str, known))
                raise UserError(f"{key}={value} is not in study.{key}s ({listed}); add it there")


class Grid:
    """The cells that are there, and what follows from them. Figures are None, or absent, where a cell is."""

    def __init__(self, plan: Plan, cells: Cells) -> None:
        self.plan = plan
        self.all = {key: cell for key, cell in cells.items() if key[0] in plan.arms and key[1] in plan.seeds}
        self.cells = {key: cell for key, cell in self.all.items() if "failed" not in cell}

    @classmethod
    def read(cls, plan: Plan, directory: Path) -> "Grid":
        """The cells of `plan` below `directory`. Raises UserError where a file is no cell of this arm and seed."""
        found = {}
        for arm in plan.arms:
            for seed in plan.seeds:
                path = cell_file(directory, arm, seed)
                if path.is_file():
                    found[arm, seed] = _read(path, arm, seed)
        return cls(plan, found)

    @property
    def complete(self) -> bool:
        """Every arm has every seed, or has failed there."""
        return len(self.all) == len(self.plan.arms) * len(self.plan.seeds)

    @property
    def arms(self) -> list[str]:
        """Those that have been begun, in the plan's order."""
        return [arm for arm in self.plan.arms if self.begun(arm)]

    def begun(self, arm: str) -> int:
        """How many seeds of an arm are there, those that diverged included."""
        return sum(key[0] == arm for key in self.all)

    def diverged(self, arm: Than | None) -> int:
        """How many seeds of an arm have; 0 for what is no arm."""
        return sum(key[0] == arm and key not in self.cells for key in self.all)

    def of(self, arm: str) -> dict[int, dict[str, Any]]:
        """Seed -> cell."""
        return {seed: self.cells[arm, seed] for seed in self.plan.seeds if (arm, seed) in self.cells}

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """Seed -> a metric of the plan, the mean of its figures; seeds that lack one of them are left out."""
        found = {}
        for seed, cell in self.of(arm).items():
            figures = [figure(cell, selector) for selector in self.plan.metrics[metric]]
            if all(one is not None and one["value"] is not None for one in figures):
                found[seed] = fmean(one["value"] for one in figures)
        return found

    def context(self, metric: str) -> Context:
        """Candidates and mean chance of a metric, from the first cell that has it."""
        for cell in self.cells.values():
            figures = [figure(cell, selector) for selector in self.plan.metrics[metric]]
            if all(one is not None for one in figures):
                known = [one["chance"] for one in figures]
                return Context(figures[0]["candidates"], None if None in known else fmean(known))
        return Context(None, None)

    def difference(self, arm: str, than: Than, metric: str, confidence: float = 0.95) -> Difference | None:
        """arm - than over the seeds that both have, without interval and p values where they are fewer than LEAST. None without such a
        seed."""
        first = self.values(arm, metric) if arm in self.plan.arms else {}
        second: Mapping[int, float] = {}
        if isinstance(than, int | float):
            second = dict.fromkeys(first, than)
        elif isinstance(than, Mapping):
            second = self.values(arm, than["metric"]) if first else {}
        elif than in self.plan.arms:
            second = self.values(than, metric)
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            return None
        found = paired_difference([first[s] for s in seeds], [second[s] for s in seeds], confidence)
        return found if len(seeds) >= LEAST else found._replace(low=None, high=None, p=None, sign_flip=None)

    def trained_anew(self) -> dict[str, list[int]]:
        """Arm -> seeds that did not start from the base's weights though their stages before the last have the same settings: these were
        trained anew, and came out otherwise."""
        found: dict[str, list[int]] = {}
        for (arm, seed), cell in self.cells.items():
            base = self.cells.get((self.plan.base, seed), {"stages": ()})
            runs = {stage["fingerprint"]: stage for stage in base["stages"][:-1]}
            if any(_came_out_otherwise(stage, runs.get(stage["fingerprint"], stage)) for stage in cell["stages"][:-1]):
                found.setdefault(arm, []).append(seed)
        return found

    def corrected(self, metric: str) -> dict[str, float]:
        """Arm -> p value against the base (paired t), corrected within its family as it is planned (Holm): arms that are to come count,
        those that cannot have the figure do not. An arm without a family stands alone."""
        found: dict[str, float] = {}
        placed = {arm for arms in self.plan.families.values() for arm in arms or ()}
        alone = [[arm] for arm in self.plan.arms if arm not in placed and arm != self.plan.base]
        for arms in (*self.plan.families.values(), *alone):
            measured = {arm: self.difference(arm, self.plan.base, metric) for arm in arms or ()}
            tested = {arm: one.p for arm, one in measured.items() if one is not None and one.p is not None}
            possible = [arm for arm in arms or () if self.values(arm, metric) or not self.of(arm)]
            found |= dict(zip(tested, holm(list(tested.values()), len(possible)), strict=True))
        return found

    def passes(self, arm: str, key: str = "flops") -> float | None:
        """What an arm's last stage has cost, the mean over its seeds, in pair-passes of the base; None where it was not counted.

        One unit for all arms, for a pair-pass of a smaller model is less. key: "chain_flops" for the whole chain.
        """
        counted = [cell[key] for cell in self.of(arm).values()]
        units = [cell["flops_per_pair"] for cell in self.of(self.plan.base).values()]
        known = counted and units and None not in (*counted, *units)
        return fmean(counted) / fmean(units) if known else None

    def chain_passes(self, arm: str) -> float | None:
        """The same of the whole chain."""
        return self.passes(arm, "chain_flops")

    def matched(self, arm: str) -> str | None:
        """The shortest of the longer bases whose chain has cost as much as the arm's or more; None where none has, or none is there."""
        spent = {other: self.spent_by(other, arm) for other in self.plan.longer if other != arm}
        enough = {other: ratio for other, ratio in spent.items() if ratio is not None and ratio >= 1 - TOLERANCE}
        return min(enough, key=enough.__getitem__, default=None)

    def spent_by(self, other: str, arm: str) -> float | None:
        """FLOPs of the other's chain over those of the arm's, the mean over the seeds that both have; None where they were not counted."""
        first, second = self.of(other), self.of(arm)
        pairs = [(first[seed]["chain_flops"], second[seed]["chain_flops"]) for seed in first if seed in second]
        return fmean(a / b for a, b in pairs) if pairs and all(a and b for a, b in pairs) else None

    def doubts(self, metric: str) -> dict[str, list[str]]:
        """Check that an attack behind this metric has not passed -> the cells it has not passed in."""
        tasks = {selector.split("/")[0] for selector in self.plan.metrics[metric]}
        unknown = {"its checks were made": False}
        found: dict[str, list[str]] = {}
        for (arm, seed), cell in self.cells.items():
            for task in tasks if seed in self.values(arm, metric) else ():
                checks = (cell.get("checks") or {}).get(task, unknown if task.startswith(ATTACKED) else {})
                for check in (name for name, passed in checks.items() if not passed):
                    found.setdefault(check, []).append(f"{arm}-seed{seed}")
        return found


LEAST = 3
"""Seeds from which on a difference has an interval: the t interval of two, on one degree of freedom, is 13 standard errors wide."""

TOLERANCE = 0.05
"""Captions differ in length from batch to batch, and so does what is counted; and epochs are whole."""


def _came_out_otherwise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two trainings of the same settings have other weights. Cells of a time before digests were kept tell it by the number of
    steps alone, which differs where a gate has ended the stage elsewhere."""
    key = "weights" if "weights" in one and "weights" in other else "steps"
    return one[key] != other[key]


def cell_file(directory: Path, arm: str, seed: int) -> Path:
    """Where a cell is kept."""
    return directory / f"{arm}-seed{seed}.json"


def figure(cell: Mapping[str, Any], selector: str) -> dict[str, Any] | None:
    """The entry of a cell's table that `task/metric` or `task/direction/metric` names."""
    task, *direction, metric = selector.split("/")
    wanted = (task, direction[0] if direction else None, metric)
    return next((row for row in cell["table"] if (row["task"], row["direction"], row["metric"]) == wanted), None)


def _read(path: Path, arm: str, seed: int) -> dict[str, Any]:
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
        keys = KEYS if "failed" in cell else (*KEYS, *KEYS_OF_FIGURES)
        intact = (cell["arm"], cell["seed"]) == (arm, seed) and all(key in cell for key in keys)
    except (ValueError, LookupError, TypeError):
        intact = False
    if not intact:
        raise UserError(f"{path} is not the cell of arm {arm} and seed {seed}: take it away and run the study again")
    return cell


KEYS = ("settings", "git_commit", "command")
KEYS_OF_FIGURES = (
    "stages",
    "steps",
    "seconds",
    "flops",
    "chain_flops",
    "flops_per_pair",
    "validation",
    "table",
)

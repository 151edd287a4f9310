"""The report of a study in markdown: what the arms reach at equal steps and at equal compute, and what becomes of the claims."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from crossvit.metrics import Difference, first_step_at, median_step, share_at_least, spread
from crossvit.report.atomic import write_atomically
from crossvit.report.cells import NOT_MEASURED, percent
from crossvit.report.study import LEAST, TOLERANCE, Grid, Than
from crossvit.report.study_plots import plot_differences, plot_levels

NO_FIGURE = "no figure"  # of an arm that has been begun: it has no such head, or has always diverged
OVERVIEW = "Mean ± standard deviation over seeds [the 95 % interval of the difference from the base, each for itself]."
LEGEND = """\
In percent; mean ± standard deviation over seeds (least seed). Differences are taken seed by seed, in points, with the 95 % t interval of
their mean. p: paired t test; Holm: the same corrected within the arm's family, those of its arms that are not there yet included; flips:
exact sign-flip test, which n seeds cannot bring below 2/2^n. A verdict goes by the interval beside it, which holds for all comparisons of
its claim together (Bonferroni): "supported" or "refuted" where it lies on one side of 0 (or of what is tolerated), else "undecided". The
two corrections answer two questions: does any arm of the family differ from the base, and does this claim hold. Below three seeds there is
no interval and no p value. Verdicts are at the arms' own lengths: what an arm cost, and what a base does with as much, stands under equal
compute. Steps to the goal: of the figure that the stage watches in validation, true/false at a threshold of 0.
"""


def write_report(grid: Grid, directory: Path) -> Path:
    """Writes report.md with levels.png and, where there is more than the base, differences.png; returns the first."""
    text = to_markdown(grid)
    if grid.cells:
        plot_levels(grid, directory / "levels.png")
        text += "\n![Levels](levels.png)\n"
    if set(grid.arms) - {grid.plan.base}:
        plot_differences(grid, directory / "differences.png")
        text += "\n![Differences](differences.png)\n"
    path = directory / "report.md"
    write_atomically(path, text.encode())
    return path


def to_markdown(grid: Grid) -> str:
    """The whole report but for the pictures."""
    plan = grid.plan
    parts = [f"# Study: {plan.name}\n", _standing(grid)]
    parts.append(f"\n## All metrics, equal steps\n\n{OVERVIEW}\n\n{overview(grid)}")
    parts.append(f"\n## Claims\n\n{claims(grid)}")
    for metric in plan.ranked:
        parts.append(
            f"\n## {plan.title(metric)}, equal steps\n\n{_context(grid, metric)}\n\n{equal_steps(grid, metric)}"
        )
        parts += [f"\n{doubt}\n" for doubt in _doubts(grid, metric)]
    parts.append(f"\n## Equal compute\n\n{_compute_note(grid)}\n\n{equal_compute(grid)}\n{LEGEND}")
    return "".join(parts)


def overview(grid: Grid) -> str:
    """One line an arm that has been begun, one column a metric: level, and the interval of its difference from the base."""
    plan = grid.plan
    lines = []
    for arm in grid.arms:
        fields = []
        for metric in plan.ranked:
            values = list(grid.values(arm, metric).values())
            difference = None if arm == plan.base else grid.difference(arm, plan.base, metric)
            fields.append(
                " ".join(filter(None, [level(values, least=False) if values else NO_FIGURE, interval(difference)]))
            )
        lines.append([arm + _diverged(grid, arm), str(len(grid.of(arm))), *fields, count(grid.passes(arm))])
    return table(["arm", "seeds", *map(plan.title, plan.ranked), "pair-passes"], lines)


def equal_steps(grid: Grid, metric: str) -> str:
    """One line an arm that has been begun: level, difference from the base, cost; for the primary metric also escape from the plateau and
    speed."""
    plan, adjusted, first = grid.plan, grid.corrected(metric), metric == grid.plan.primary
    header = ["arm", "seeds", "level", "minus base", "p", "Holm", "flips"]
    header += [f"seeds >= {percent(plan.escaped, 0)}", f"steps to {percent(plan.goal, 0)} in validation"] * first
    lines = []
    for arm in grid.arms:
        values, diverged = list(grid.values(arm, metric).values()), grid.diverged(arm)
        difference = None if arm == plan.base else grid.difference(arm, plan.base, metric)
        escaped = [*values, *[-inf] * diverged]
        lines.append(
            [
                arm,
                f"{len(values)} of {len(plan.seeds)}" + f", {diverged} diverged" * bool(diverged),
                level(values) if values else NO_FIGURE,
                "" if arm == plan.base or not values else effect(difference),
                p_value(difference.p if difference else None),
                p_value(adjusted.get(arm)),
                p_value(difference.sign_flip if difference else None),
                *[percent(share_at_least(escaped, plan.escaped), 0) if escaped else "", speed(grid, arm)] * first,
                count(grid.passes(arm)),
            ]
        )
    return table([*header, "pair-passes"], lines)


def equal_compute(grid: Grid) -> str:
    """One line an arm that has been begun: the base that was given as much, what it has spent over what the arm has, and the differences
    from it."""
    plan = grid.plan
    lines = []
    for arm in grid.arms:
        if arm in plan.longer:
            continue
        other = grid.matched(arm)
        found = [NOT_MEASURED, *[""] * (len(plan.metrics) + 2)]
        if other:
            differences = [grid.difference(arm, other, metric) for metric in plan.ranked]
            seeds = max((one.count for one in differences if one is not None), default=0)
            found = [other, str(seeds), f"{grid.spent_by(other, arm):.2f}", *map(effect, differences)]
        lines.append([arm + _diverged(grid, arm, other), count(grid.chain_passes(arm)), *found])
    return table(
        ["arm", "pair-passes of the chain", "base", "seeds", "spent by it / by the arm", *map(plan.title, plan.ranked)],
        lines,
    )


def claims(grid: Grid) -> str:
    """One line a claim and comparison."""
    lines = []
    for name, claim in grid.plan.claims.items():
        confidence = 1 - 0.05 / max(len(claim["evidence"]), 1)
        for evidence in claim["evidence"] or [None]:
            if evidence is None:
                lines.append([name, claim["says"], "", "", NOT_MEASURED])
                continue
            arm, than, metric = evidence["arm"], evidence["than"], evidence["metric"]
            expected, margin = evidence["expected"], evidence.get("margin", 0)
            worse = {"higher": "lower", "lower": "higher"}[expected]
            asked = f"no more than {percent(margin)} {worse}" if margin else expected
            question = f"{arm} {asked} than {_named(grid, than)} in {grid.plan.title(metric)}"
            difference = grid.difference(arm, than, metric, confidence)
            lost = _diverged(grid, arm, than)
            found = "" if difference is None else f"{effect(difference)} (seeds: {difference.count})"
            answer = f"undecided:{lost}" if lost else verdict(difference, expected, margin)
            lines.append([name, claim["says"], question, found, answer])
    return table(["claim", "says", "tested as", "difference", "verdict"], lines)


def _named(grid: Grid, than: Than) -> str:
    if isinstance(than, Mapping):
        return grid.plan.title(than["metric"])
    return than if isinstance(than, str) else percent(than)


def _diverged(grid: Grid, *arms: Than | None) -> str:
    """` (late: 1 of 5 seeds diverged)`, for those of the two that have: what is left says less than it seems to."""
    lost = [f"{arm}: {grid.diverged(arm)} of {grid.begun(arm)} seeds diverged" for arm in arms if grid.diverged(arm)]
    return f" ({'; '.join(lost)})" if lost else ""


def verdict(difference: Difference | None, expected: str, margin: float = 0) -> str:
    """By the interval of the difference, in words. margin: a difference against expectation that is tolerated."""
    if difference is None:
        return NOT_MEASURED
    if difference.count < LEAST:
        return f"undecided: fewer than {LEAST} seeds"
    low, high = (difference.low, difference.high) if expected == "higher" else (-difference.high, -difference.low)
    if low <= -margin <= high:
        return "undecided"
    return "supported" if low > -margin else "refuted"


def level(values: Sequence[float], least: bool = True) -> str:
    """`94.3 ± 1.2 (92.9)`."""
    if not values:
        return NOT_MEASURED
    found = spread(values)
    if found.sd is None:
        return percent(found.mean)
    return f"{percent(found.mean)} ± {percent(found.sd)}" + f" ({percent(found.least)})" * least


def effect(difference: Difference | None) -> str:
    """`+1.2 [-0.3, +2.7]`, in points."""
    if difference is None:
        return NOT_MEASURED
    return " ".join(filter(None, [f"{100 * difference.mean:+.1f}", interval(difference)]))


def interval(difference: Difference | None) -> str:
    """`[-0.3, +2.7]`, in points; nothing where there is none."""
    if difference is None or difference.low is None:
        return ""
    return f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def speed(grid: Grid, arm: str) -> str:
    """The median step at which validation reached the goal, and how many seeds never did."""
    runs = list(grid.of(arm).values())
    reached = [first_step_at(cell["validation"], grid.plan.goal, cell["mode"]) for cell in runs if cell["validation"]]
    reached += [None] * grid.diverged(arm)
    if not reached:
        return ""
    never, middle = reached.count(None), median_step(reached)
    text = f"> {max((cell['steps'] for cell in runs), default=0):,}" if middle is None else f"{middle:,.0f}"
    return f"{text} ({never} of {len(reached)} never)" if never else text


def p_value(p: float | None) -> str:
    """Three digits, or nothing."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: float | None) -> str:
    """A whole number with separators, or nothing."""
    return "" if number is None else f"{number:,.0f}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A GitHub pipe table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(field.replace('|', chr(92) + '|') for field in row)} |\n" for row in rows)


def _standing(grid: Grid) -> str:
    plan = grid.plan
    lines = [
        f"\n{len(grid.all)} of {len(plan.arms) * len(plan.seeds)} cells: {len(plan.arms)} arms x {len(plan.seeds)} seeds."
    ]
    if not grid.complete:
        parts = [
            f"{arm} {grid.begun(arm)} of {len(plan.seeds)}" for arm in grid.arms if grid.begun(arm) < len(plan.seeds)
        ]
        lacking = [arm for arm in plan.arms if not grid.begun(arm)]
        parts += [f"not begun: {', '.join(lacking)}"] if lacking else []
        lines.append(
            f"**The grid is not complete:** {'; '.join(parts)}. What stands below is over the seeds that are there."
        )
    for arm in grid.arms:
        groups = _grouped({seed: cell["settings"] for (of, seed), cell in grid.all.items() if of == arm})
        if len(groups) > 1:
            told = " | ".join(f"seeds {', '.join(map(str, seeds))}" for seeds in groups.values())
            lines.append(f"**The seeds of {arm} were run with different settings:** {told}.")
    commands = {key: _further(cell["command"]) for key, cell in grid.all.items()}
    further = [f"{arm}-seed{seed}: {' '.join(given)}" for (arm, seed), given in commands.items() if given]
    if further:
        lines.append(f"**Run with further overrides:** {'; '.join(further)}.")
    if anew := grid.trained_anew():
        told = "; ".join(f"{arm} {' '.join(map(str, seeds))}" for arm, seeds in anew.items())
        lines.append(
            f"**Not from the base's own weights:** {told}. The stages before the last were trained anew there and came out otherwise "
            "(another processor), so these seeds pair with the base's in name only, and their intervals are wider than they would be."
        )
    failed = {key: cell["failed"] for key, cell in grid.all.items() if "failed" in cell}
    lines += [f"**Diverged:** {arm}-seed{seed}: {reason}" for (arm, seed), reason in failed.items()]
    return "\n".join([*lines, *_code(grid)]) + "\n"


def _code(grid: Grid) -> list[str]:
    """Which cells were tested with which commit."""
    commits = _grouped({key: cell["git_commit"] or "not known" for key, cell in grid.all.items()})
    if not commits:
        return []
    told = []
    for commit, keys in commits.items():
        arms = ", ".join(f"{arm} {' '.join(map(str, seeds))}" for arm, seeds in _grouped_pairs(keys).items())
        told.append(commit[:9] + "+" * commit.endswith("+") + f" ({arms})" * (len(commits) > 1))
    return [
        f"Code (+: with changes that were not committed){', with arms and seeds' * (len(told) > 1)}: {'; '.join(told)}."
    ]


def _grouped(values: Mapping[Any, str]) -> dict[str, list[Any]]:
    """Value -> the keys that have it."""
    groups: dict[str, list[Any]] = {}
    for key, value in values.items():
        groups.setdefault(value, []).append(key)
    return groups


def _grouped_pairs(keys: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Arm -> seeds."""
    arms: dict[str, list[int]] = {}
    for arm, seed in keys:
        arms.setdefault(arm, []).append(seed)
    return arms


def _doubts(grid: Grid, metric: str) -> list[str]:
    """What an attack's own checks say against its figures."""
    return [f"Not so in {', '.join(cells)}: {check}." for check, cells in grid.doubts(metric).items()]


def _further(command: str) -> list[str]:
    """What a cell's command asks for beyond the study, the arm and the seed."""
    own = ("study", "arm", "seed")
    return [word for word in shlex.split(command)[2:] if word.partition("=")[0] not in own]


def _context(grid: Grid, metric: str) -> str:
    candidates, chance = grid.context(metric)
    parts = [f"The mean of {', '.join(f'`{selector}`' for selector in grid.plan.metrics[metric])}"]
    parts += [] if candidates is None else [f"N={candidates}"]
    parts += [] if chance is None else [f"chance {percent(chance)}"]
    return "; ".join(parts) + "."


def _compute_note(grid: Grid) -> str:
    return (
        f"Each arm against the shortest of {', '.join(grid.plan.longer)} whose chain took as many FLOPs or more (within "
        f"{percent(TOLERANCE, 0)} %). They were counted in training, forward and backward, with all that an objective adds, and are given "
        "in pair-passes: one pair once forward and backward through the base's towers, fusion and matching head. A longer base has its "
        "learning-rate schedule stretched, not cut."
    )

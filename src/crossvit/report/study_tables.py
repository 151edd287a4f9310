"""The report of a study in markdown: what the arms reach at equal steps and at equal compute, and what becomes of the claims."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path

from crossvit.metrics import Difference, first_step_at, median_step, share_at_least, spread
from crossvit.report.atomic import write_atomically
from crossvit.report.cells import NOT_MEASURED, percent
from crossvit.report.study import TOLERANCE, Grid
from crossvit.report.study_plots import plot_differences, plot_levels
from crossvit.report.table import heading

LEGEND = """\
In percent; mean ± standard deviation over seeds (least seed). Differences are taken seed by seed, in points, with the 95 % t interval of
their mean. p: paired t test; Holm: the same corrected within the arm's family, those of its arms that are not there yet included; flips:
exact sign-flip test, which n seeds cannot bring below 2/2^n. A verdict goes by the interval beside it, which holds for all comparisons of
its claim together (Bonferroni): "supported" or "refuted" where it lies on one side of 0 (or of what is tolerated), else "undecided"; it
needs three seeds. Verdicts are at the arms' own lengths: what an arm cost, and what a base does with as much, stands in the tables before.
"""


def write_report(grid: Grid, directory: Path) -> Path:
    """Writes report.md, levels.png and differences.png into the study's directory and returns the first."""
    text = to_markdown(grid)
    if grid.cells:
        plot_levels(grid, directory / "levels.png")
        plot_differences(grid, directory / "differences.png")
        text += "\n![Levels](levels.png)\n\n![Differences](differences.png)\n"
    path = directory / "report.md"
    write_atomically(path, text.encode())
    return path


def to_markdown(grid: Grid) -> str:
    """The whole report but for the pictures."""
    plan = grid.plan
    parts = [f"# Study: {plan.name}\n", _standing(grid)]
    for metric in plan.metrics:
        parts.append(f"\n## {heading(metric)}, equal steps\n\n{_context(grid, metric)}\n\n{equal_steps(grid, metric)}")
        parts += [f"\n{doubt}\n" for doubt in _doubts(grid, metric)]
    parts.append(f"\n## Equal compute\n\n{_compute_note(grid)}\n\n{equal_compute(grid)}")
    parts.append(f"\n## Claims\n\n{claims(grid)}\n{LEGEND}")
    return "".join(parts)


def begun(grid: Grid) -> list[str]:
    """The arms that have a cell, in the plan's order."""
    return [arm for arm in grid.plan.arms if grid.of(arm) or grid.failures(arm)]


def equal_steps(grid: Grid, metric: str) -> str:
    """One line an arm that has been begun: level, difference from the base, escape from the plateau, speed, cost."""
    plan, adjusted = grid.plan, grid.corrected(metric)
    header = ["arm", "seeds", "level", "minus base", "p", "Holm", "flips", f"seeds >= {percent(plan.escaped, 0)}"]
    header += [f"steps to {percent(plan.goal, 0)} in validation", "pair-passes"]
    lines = []
    for arm in begun(grid):
        values, failures = list(grid.values(arm, metric).values()), grid.failures(arm)
        runs = [*values, *[-inf] * failures]
        difference = None if arm == plan.base else grid.difference(arm, plan.base, metric)
        lines.append(
            [
                arm,
                f"{len(values)} of {len(plan.seeds)}" + f", {failures} diverged" * bool(failures),
                level(values),
                "" if arm == plan.base else effect(difference),
                p_value(difference.p if difference else None),
                p_value(adjusted.get(arm)),
                p_value(difference.sign_flip if difference else None),
                percent(share_at_least(runs, plan.escaped), 0) if runs else "",
                speed(grid, arm),
                count(grid.passes(arm)),
            ]
        )
    return table(header, lines)


def equal_compute(grid: Grid) -> str:
    """One line an arm that has been begun: the base that was given as much, what it has spent over what the arm has, and the differences
    from it."""
    plan = grid.plan
    lines = []
    for arm in begun(grid):
        if arm in plan.longer:
            continue
        other = grid.matched(arm)
        found = [NOT_MEASURED, *[""] * (len(plan.metrics) + 1)]
        if other:
            differences = [grid.difference(arm, other, metric) for metric in plan.metrics]
            found = [other, f"{grid.spent_by(other, arm):.2f}", *map(effect, differences)]
        lines.append([arm, count(grid.chain_passes(arm)), *found])
    return table(
        ["arm", "pair-passes of the chain", "base", "spent by it / by the arm", *map(heading, plan.metrics)], lines
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
            other = (
                heading(than["metric"])
                if isinstance(than, Mapping)
                else than
                if isinstance(than, str)
                else percent(than)
            )
            expected, margin = evidence["expected"], evidence.get("margin", 0)
            worse = {"higher": "lower", "lower": "higher"}[expected]
            asked = f"no more than {percent(margin)} {worse}" if margin else expected
            question = f"{arm} {asked} than {other} in {heading(metric)}"
            difference = grid.difference(arm, than, metric, confidence)
            found = "" if difference is None else f"{effect(difference)} (seeds: {difference.count})"
            lines.append([name, claim["says"], question, found, verdict(difference, expected, margin)])
    return table(["claim", "says", "tested as", "difference", "verdict"], lines)


def verdict(difference: Difference | None, expected: str, margin: float = 0) -> str:
    """By the interval of the difference, in words. margin: a difference against expectation that is tolerated."""
    if difference is None:
        return NOT_MEASURED
    if difference.count < 3:
        return "undecided: fewer than three seeds"
    low, high = (difference.low, difference.high) if expected == "higher" else (-difference.high, -difference.low)
    if low <= -margin <= high:
        return "undecided"
    return "supported" if low > -margin else "refuted"


def level(values: Sequence[float]) -> str:
    """`94.3 ± 1.2 (92.9)`."""
    if not values:
        return NOT_MEASURED
    found = spread(values)
    return (
        percent(found.mean)
        if found.sd is None
        else f"{percent(found.mean)} ± {percent(found.sd)} ({percent(found.least)})"
    )


def effect(difference: Difference | None) -> str:
    """`+1.2 [-0.3, +2.7]`, in points."""
    if difference is None:
        return NOT_MEASURED
    text = f"{100 * difference.mean:+.1f}"
    return text if difference.low is None else f"{text} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def speed(grid: Grid, arm: str) -> str:
    """The median step at which validation reached the goal, and how many seeds never did."""
    runs = list(grid.of(arm).values())
    reached = [first_step_at(cell["validation"], grid.plan.goal, cell["mode"]) for cell in runs if cell["validation"]]
    if not reached:
        return ""
    reached += [None] * grid.failures(arm)
    never, middle = reached.count(None), median_step(reached)
    text = f"> {max(cell['steps'] for cell in runs):,}" if middle is None else f"{middle:,.0f}"
    return f"{text} ({never} of {len(reached)} never)" if never else text


def p_value(p: float | None) -> str:
    """Three digits, or nothing."""
    return "" if p is None else f"{p:.3f}"


def count(number: float | None) -> str:
    """A whole number with separators, or nothing."""
    return "" if number is None else f"{number:,.0f}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A GitHub pipe table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(field.replace('|', chr(92) + '|') for field in row)} |\n" for row in rows)


def _standing(grid: Grid) -> str:
    plan = grid.plan
    there, all_of_them = len(grid.cells) + len(grid.failed), len(plan.arms) * len(plan.seeds)
    lines = [f"\n{there} of {all_of_them} cells: {len(plan.arms)} arms x {len(plan.seeds)} seeds."]
    if not grid.complete:
        parts = [f"{arm} {len(grid.of(arm))} of {len(plan.seeds)}" for arm in begun(grid)]
        parts = [text for text, arm in zip(parts, begun(grid), strict=True) if len(grid.of(arm)) < len(plan.seeds)]
        lacking = [arm for arm in plan.arms if not grid.of(arm)]
        parts += [f"not begun: {', '.join(lacking)}"] if lacking else []
        lines.append(
            f"**The grid is not complete:** {'; '.join(parts)}. What stands below is over the seeds that are there."
        )
    for arm in plan.arms:
        settings: dict[str, list[int]] = {}
        for seed, cell in grid.of(arm).items():
            settings.setdefault(cell["settings"], []).append(seed)
        if len(settings) > 1:
            groups = " | ".join(f"seeds {', '.join(map(str, seeds))}" for seeds in settings.values())
            lines.append(f"**The seeds of {arm} were run with different settings:** {groups}.")
    commands = {key: _further(cell["command"]) for key, cell in grid.cells.items()}
    further = [f"{arm}-seed{seed}: {' '.join(given)}" for (arm, seed), given in commands.items() if given]
    if further:
        lines.append(f"**Run with further overrides:** {'; '.join(further)}.")
    lines += [f"**Diverged:** {arm}-seed{seed}: {reason}" for (arm, seed), reason in grid.failed.items()]
    lines += _code(grid)
    return "\n".join(lines) + "\n"


def _code(grid: Grid) -> list[str]:
    """Which cells come from which commit."""
    commits: dict[str, dict[str, list[str]]] = {}
    for (arm, seed), cell in grid.cells.items():
        commit = cell["git_commit"] or "not known"
        short = commit[:9] + "+" * commit.endswith("+")
        commits.setdefault(short, {}).setdefault(arm, []).append(str(seed))
    cells = {
        commit: ", ".join(f"{arm} {' '.join(seeds)}" for arm, seeds in arms.items()) for commit, arms in commits.items()
    }
    if len(cells) == 1:
        return [f"Code: {next(iter(cells))} (+: with changes that were not committed)."]
    told = "; ".join(f"{commit} ({which})" for commit, which in cells.items())
    return (
        [f"Code (+: with changes that were not committed) and what was run with it, arms and seeds: {told}."]
        if cells
        else []
    )


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

"""A study in two pictures: every seed of every arm, and the differences from the base with their intervals."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from crossvit.metrics import spread
from crossvit.report.plots import COLOURS, canvas, save_png
from crossvit.report.study import LEAST, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.26  # height of an arm in inches
COLUMNS = 4  # panels side by side
TITLE = 34  # letters in a line of a panel's title


def plot_levels(grid: Grid, path: str | os.PathLike) -> Path:
    """One panel a metric: a dot for each seed, the mean with its 95 % t interval, dotted chance."""
    note = "percent; dots: seeds; whisker: mean and 95 % t interval, cut at 0 and 100; dotted: chance"
    panels = _panels(grid, grid.arms, note)
    for panel, metric in zip(panels.axes, grid.plan.ranked, strict=True):
        chance = grid.context(metric).chance
        if chance is not None:
            panel.axvline(100 * chance, color="black", linestyle=":", linewidth=1.2)
        for place, arm in enumerate(grid.arms):
            values = list(grid.values(arm, metric).values())
            if not values:
                continue
            colour = COLOURS[1] if arm == grid.plan.base else COLOURS[0]
            panel.plot(
                [100 * value for value in values], [place] * len(values), "o", color=colour, alpha=0.45, markersize=4
            )
            found = spread(values)
            if found.count < LEAST:
                _whisker(panel, place, found.mean)
            else:  # an interval of few seeds may reach beyond what there is
                _whisker(panel, place, found.mean, max(found.low, 0.0), min(found.high, 1.0))
    return save_png(panels, path)


def plot_differences(grid: Grid, path: str | os.PathLike) -> Path:
    """One panel a metric: arm - base with the 95 % t interval."""
    arms = [arm for arm in grid.arms if arm != grid.plan.base]
    panels = _panels(grid, arms, "points from the base, seed by seed; whisker: 95 % t interval")
    for panel, metric in zip(panels.axes, grid.plan.ranked, strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        for place, arm in enumerate(arms):
            difference = grid.difference(arm, grid.plan.base, metric)
            if difference is not None:
                _whisker(panel, place, difference.mean, difference.low, difference.high)
    return save_png(panels, path)


def _panels(grid: Grid, arms: Sequence[str], note: str):
    """An empty panel for each metric, a line in it for each arm."""
    metrics = grid.plan.ranked
    labels = [arm + f" ({grid.diverged(arm)} diverged)" * bool(grid.diverged(arm)) for arm in arms]
    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = canvas(1.8 + 2.8 * columns, (1.1 + LINE * len(arms)) * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for unused in axes[len(metrics) :]:
        unused.remove()
    for panel, metric in zip(axes, metrics, strict=False):
        panel.set_title(fill(grid.plan.title(metric), TITLE), fontsize=9, loc="left")
        panel.set_yticks(range(len(arms)), labels, fontsize=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(note, fontsize=8)
    return figure


def _whisker(panel: "Axes", place: int, mean: float, low: float | None = None, high: float | None = None) -> None:
    if low is not None:
        panel.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1.2)
    panel.plot([100 * mean], [place], "|", color="black", markersize=11, markeredgewidth=1.8)

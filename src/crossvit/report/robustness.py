"""Curves of accuracy under attack, read from the cells of a table."""

import os
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from crossvit.report.cells import Cell
from crossvit.report.plots import COLOURS, PANEL, canvas, save_png
from crossvit.report.table import heading

ATTACKED = "robustness_"
_POINT = re.compile(r"(eps|random) ([0-9.e+-]+)")


def plot_robustness(cells: Sequence[Cell], path: str | os.PathLike) -> Path:
    """A panel for each space that was attacked: accuracy over eps with its interval, solid under attack, dashed under random changes.

    One colour a row of the table. Raises ValueError where no cell is of such a task.
    """
    tasks = sorted({cell.task for cell in cells if cell.task.startswith(ATTACKED)})
    if not tasks:
        raise ValueError("no cell is of a task of robustness")
    rows = list(dict.fromkeys(cell.row for cell in cells if cell.task in tasks))
    figure = canvas(PANEL[0] * len(tasks), PANEL[1] * 1.3)
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for colour, row in zip(cycle(COLOURS), rows, strict=False):
            for kind, style in (("eps", "-"), ("random", "--")):
                points = curve([cell for cell in cells if cell.task == task and cell.row == row], kind)
                if points:
                    x, value, low, high = zip(*points, strict=True)
                    panel.plot(
                        x, value, style, marker="o", markersize=3, color=colour, label=row if kind == "eps" else None
                    )
                    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.axhline(50, color="0.6", linewidth=0.8, linestyle=":")
        panel.set_title(heading(task), fontsize=8)
        panel.set_xlabel("eps; solid: under attack, dashed: random", fontsize=8)
        panel.set_ylabel("percent", fontsize=8)
        panel.set_ylim(0, 100)
    panel.legend(fontsize=7)
    return save_png(figure, path)


def curve(cells: Sequence[Cell], kind: str) -> list[tuple[float, float, float, float]]:
    """(eps, value, low, high) in percent by ascending eps, of the metrics `<kind> <eps>`; both kinds start at eps 0."""
    points = []
    for cell in cells:
        found = _POINT.fullmatch(cell.metric)
        if found and (found[1] == kind or float(found[2]) == 0):
            points.append((float(found[2]), 100 * cell.value, 100 * cell.low, 100 * cell.high))
    return sorted(points)

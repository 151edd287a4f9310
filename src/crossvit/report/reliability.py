"""How often statements are true where the model is so sure of them."""

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from crossvit.report.plots import COLOURS, PANEL, canvas, save_png
from crossvit.report.table import heading

if TYPE_CHECKING:
    from crossvit.metrics import Bin


def plot_reliability(tasks: Mapping[str, Mapping[str, Sequence["Bin"]]], path: str | os.PathLike) -> Path:
    """A panel for each task: the share that is true over p(match), a line for each row of the table; dotted, where the two are equal.

    Args:
        tasks: {task: {row: its bins by ascending probability}}.

    Raises:
        ValueError: there is no task.
    """
    if not tasks:
        raise ValueError("no task was calibrated")
    rows = list(dict.fromkeys(row for lines in tasks.values() for row in lines))
    colours = dict(zip(rows, cycle(COLOURS), strict=False))
    figure = canvas(PANEL[0] * len(tasks), PANEL[1] * 1.3)
    for panel, (task, lines) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        panel.plot([0, 100], [0, 100], color="0.6", linewidth=0.8, linestyle=":")
        for row, bins in lines.items():
            x, y = ([100 * getattr(one, axis) for one in bins] for axis in ("probability", "share"))
            panel.plot(x, y, marker="o", markersize=3, color=colours[row], label=row)
        panel.set_title(heading(task), fontsize=8)
        panel.set(xlim=(0, 100), ylim=(0, 100))
        panel.set_xlabel("p(match), percent; mean of each bin", fontsize=8)
        panel.set_ylabel("of them true, percent", fontsize=8)
        panel.legend(fontsize=7)
    return save_png(figure, path)

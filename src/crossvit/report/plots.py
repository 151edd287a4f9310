"""Figures as png files. matplotlib is loaded on use and draws without a display; no global state of it is touched."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossvit.report.atomic import write_atomically
from crossvit.report.cells import PLAIN, percent
from crossvit.report.curves import read_curves
from crossvit.report.summary import Figure
from crossvit.report.table import Table, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import ArrayLike

COLOURS = ("#1f6f9f", "#e0862f", "#4f9d69", "#a0508c", "#7a7a7a", "#b5a642")
BAR = 0.24  # height of a bar in inches
PANEL = (4.0, 2.6)  # inches, one panel of curves


def plot_table(table: Table, path: str | os.PathLike) -> Path:
    """Bars for every measured entry, one panel a task: mean, 95 % interval (or standard deviation over seeds) and chance."""
    tasks = [task for task in table.tasks if any(table.entry(row, task) for row in table.rows)]
    if not tasks:
        raise ValueError("the table has no cells to plot")
    bars = {task: _bars(table, task) for task in tasks}
    heights = [BAR * len(rows) * max(2, len(_metrics(rows))) + 0.1 for rows in bars.values()]
    figure = canvas(8.0, sum(heights) + 0.75 * len(heights) + 0.5)
    panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, task in zip(panels, tasks, strict=True):
        _draw_bars(panel, bars[task])
        panel.set_title(heading(task), loc="left", fontsize=10, fontweight="bold")
    panels[-1].set_xlabel("percent; whisker: 95 % interval, or ± sd over seeds; dotted: chance", fontsize=8)
    return save_png(figure, path)


def plot_curves(log: str | os.PathLike, path: str | os.PathLike) -> Path:
    """Training curves of a metrics.csv or metrics.jsonl; `train/loss` and `val/loss` share a panel.

    Raises:
        UserError: see `read_curves`.
    """
    panels: dict[str, list[tuple[str, tuple[list[float], list[float]]]]] = {}
    for name, series in read_curves(log).items():
        split, _, metric = name.partition("/") if name.split("/")[0] in ("train", "val", "test") else ("", "", name)
        panels.setdefault(metric, []).append((split, series))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = canvas(PANEL[0] * columns, PANEL[1] * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (metric, lines) in zip(axes, panels.items(), strict=False):
        for colour, (split, (steps, values)) in zip(COLOURS, lines, strict=False):
            # A metric logged once is a point, which a line would not show.
            panel.plot(
                steps,
                values,
                color=colour,
                label=split,
                linewidth=1.4,
                marker="o" if len(steps) < 20 else None,
                markersize=3,
            )
        panel.set_title(metric, fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25)
        if any(split for split, _ in lines):
            panel.legend(fontsize=8, frameon=False)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    return save_png(figure, path)


def plot_pairing(
    matrix: "ArrayLike", words: Sequence[str], grid: tuple[int, int], image: "ArrayLike", path: str | os.PathLike
) -> Path:
    """Where each word looks: its row of a pairing (attention) matrix laid over the image, all words on one colour scale.

    Args:
        matrix: (M, h*w) weights of M words over the grid cells in row order, or (M, 1 + h*w) with the CLS token first; more rows than
            words (padding) are left out.
        words: M of them, as they shall be printed.
        grid: (h, w).
        image: (3, H, W) or (H, W, 3), uint8 or float in [0, 1].

    Raises:
        ValueError: matrix, words and grid do not fit.
    """
    import numpy as np

    weights, pixels = np.asarray(matrix, dtype=np.float64), np.asarray(image)
    cells = grid[0] * grid[1]
    if weights.ndim != 2 or weights.shape[1] not in (cells, cells + 1) or not 0 < len(words) <= len(weights):
        raise ValueError(
            f"matrix {weights.shape} fits neither {len(words)} words nor a grid of {grid[0]}x{grid[1]} cells"
        )
    weights = weights[: len(words), -cells:].reshape(-1, *grid)
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 and pixels.shape[-1] != 3 else pixels
    grey = pixels.mean(-1)
    columns = min(6, len(words) + 1)
    rows = math.ceil((len(words) + 1) / columns)
    figure = canvas(1.7 * columns + 0.7, 1.95 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    for panel in axes:
        panel.set_axis_off()
    axes[0].imshow(pixels, extent=extent)
    axes[0].set_title("image", fontsize=9, style="italic")
    for panel, word, weight in zip(axes[1:], words, weights, strict=False):
        # The image stays pale grey underneath: outlines to find one's way by, no shades to mistake for weights.
        panel.imshow(
            grey, extent=extent, cmap="gray", vmin=grey.min() - 2 * np.ptp(grey), vmax=grey.max() + np.ptp(grey)
        )
        heat = panel.imshow(weight, extent=extent, cmap="inferno", alpha=0.7, vmin=0, vmax=weights.max() or 1)
        panel.set_title(word, fontsize=9)
    bar = figure.colorbar(heat, ax=list(axes), fraction=0.025, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("weight", fontsize=8)
    return save_png(figure, path)


def _bars(table: Table, task: str) -> list[tuple[str, list[Figure]]]:
    """(label, figures) for each measurement of a task, rows in table order; percentages alone, for they share an axis."""
    bars = []
    for row in table.rows:
        for found in table.entry(row, task):
            context = (found.direction, f"N={found.candidates}" if found.candidates else None)
            label = f"{' | '.join(table.row_cells(row))}\n{'  '.join(part for part in context if part)}"
            bars.append((label.strip(), [figure for figure in found.figures if figure.metric not in PLAIN]))
    return bars


def _metrics(bars: list[tuple[str, list[Figure]]]) -> list[str]:
    return list(dict.fromkeys(figure.metric for _, figures in bars for figure in figures))


def _draw_bars(panel: "Axes", bars: list[tuple[str, list[Figure]]]) -> None:
    names = _metrics(bars)
    height = 0.8 / len(names)
    for place, (_, figures) in enumerate(bars):
        for figure in figures:
            y = place - 0.4 + height * (names.index(figure.metric) + 0.5)
            _draw_bar(panel, figure, y, height, COLOURS[names.index(figure.metric) % len(COLOURS)])
    panel.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.set_xlim(0, 125)
    panel.set_xticks(range(0, 101, 20))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", alpha=0.25)
    panel.set_axisbelow(True)
    panel.tick_params(labelbottom=True, labelsize=8)


def _draw_bar(panel: "Axes", figure: Figure, y: float, height: float, colour: str) -> None:
    if figure.mean is None:
        panel.text(1, y, f"{figure.metric}: not a number", va="center", fontsize=7)
        return
    end = figure.mean
    panel.barh(y, 100 * figure.mean, height=height * 0.9, color=colour)
    if figure.interval is not None:
        low, high = figure.interval
        panel.plot([100 * low, 100 * high], [y, y], color="black", marker="|", markersize=5, linewidth=1)
        end = high
    if figure.chance is not None:
        edges = [y - height / 2, y + height / 2]
        panel.plot([100 * figure.chance] * 2, edges, color="black", linestyle=":", linewidth=1.6)
    panel.text(100 * end + 1, y, f"{percent(figure.mean)}  {figure.metric}", va="center", fontsize=7)


def canvas(width: float, height: float) -> "Canvas":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout="constrained", dpi=130)


def save_png(figure: "Canvas", path: str | os.PathLike) -> Path:
    """Draws the figure into a file, which appears whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    write_atomically(path, png.getvalue())
    return Path(path)

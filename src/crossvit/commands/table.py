"""Prints and keeps the result table of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from crossvit.report.cells import Cell
from crossvit.report.plots import plot_curves, plot_table
from crossvit.report.reliability import plot_reliability
from crossvit.report.robustness import ATTACKED, plot_robustness
from crossvit.report.table import Table

if TYPE_CHECKING:
    from crossvit.metrics import Bin

NO_HEAD = "its head is not trained in this stage"
NO_TOWERS = "this stage has not trained both towers"
BLIND = "sees no model: measured once, where its task is"
ABSENT = {
    "classification": "this stage has no classifier",
    "zero_shot": NO_TOWERS,
    "vqcmi_fused": NO_HEAD,
    "mimic_fused": NO_HEAD,
    "mimic_fused_strict": NO_HEAD,
    "mimic_precision": NO_TOWERS,
    "mimic_zero_shot": NO_TOWERS,
    "openi_fused": NO_HEAD,
    "openi_fused_strict": NO_HEAD,
    "openi_precision": NO_TOWERS,
    "openi_zero_shot": NO_TOWERS,
    "scenes_fused": NO_HEAD,
    "vqcmi_n_way_fused": NO_HEAD,
    "vqcmi_sum": NO_HEAD,
    "twins_fused": NO_HEAD,
    "twins_blind": NO_TOWERS,
    "quads": NO_TOWERS,
    "quads_fused": NO_HEAD,
    "sugarcrepe_fused": NO_HEAD,
    "sugarcrepe_blind": NO_TOWERS,
    "winoground": NO_TOWERS,
    "winoground_fused": NO_HEAD,
    "aro_fused": NO_HEAD,
    "aro_blind": NO_TOWERS,
    "aro_order_coco": NO_TOWERS,
    "aro_order_coco_fused": NO_HEAD,
    "aro_order_flickr30k": NO_TOWERS,
    "aro_order_flickr30k_fused": NO_HEAD,
    "calibration": NO_TOWERS,
    "calibration_fused": NO_HEAD,
    "robustness_text": NO_HEAD,
    "robustness_patch": NO_HEAD,
    "robustness_pixel": NO_HEAD,
    "vlr": NO_HEAD,
    "vlr_compositional": NO_HEAD,
    "vlr_medium": NO_HEAD,
    "vlr_published": NO_HEAD,
    "nlvr": NO_HEAD,
    "nlvr2": NO_HEAD,
    "blind_text": BLIND,
    "blind_image": BLIND,
    "nlvr_blind_text": BLIND,
    "nlvr_blind_image": BLIND,
    "nlvr2_blind_text": BLIND,
    "nlvr2_blind_image": BLIND,
}


def present(cells: list[Cell], directory: Path, curves: Mapping[str, Mapping[str, Sequence["Bin"]]]) -> Table:
    """Writes table.md, table.csv, table.json and the plots into a run directory, and prints the table with where they lie.

    curves: {task: {row: how often it is true where p(match) is so much}}.
    """
    table = Table(cells, missing=ABSENT)
    table.write(directory)
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    if cells:
        plot_table(table, plots / "table.png")
    if any(cell.task.startswith(ATTACKED) for cell in cells):
        plot_robustness(cells, plots / "robustness.png")
    if curves:
        plot_reliability(curves, plots / "reliability.png")
    for log in sorted(directory.glob("metrics/*/metrics.csv")):
        plot_curves(log, plots / f"{log.parent.name}.png")
    Console().print(table.to_rich())
    print(f"table: {directory / 'table.md'} (also .csv, .json)\nplots: {plots}\nrun:   {directory}")
    if (directory / "wandb").is_dir():
        print(f"wandb: {directory / 'wandb'} (offline runs upload with `wandb sync`)")
    return table

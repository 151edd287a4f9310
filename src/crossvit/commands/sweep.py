"""`crossvit sweep status` and `crossvit sweep report`: how the jobs of a sweep fare, and what they have measured."""

import json
import logging
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from crossvit.errors import UserError
from crossvit.report.cells import Cell
from crossvit.report.table import Table
from crossvit.sweeps import Sweep, SweepJob, find

log = logging.getLogger(__name__)

COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "missing": "dim"}


def run(cfg: DictConfig) -> None:
    """Prints the state of every job, or writes and prints the table of their figures. Raises UserError where there is no such sweep."""
    sweep = Sweep.read(find(Path(cfg.paths.runs), cfg.sweep_name))
    if cfg.show == "status":
        Console().print(state_table(sweep))
        print(f"{', '.join(f'{number} {state}' for state, number in sweep.count().items())}\nsweep: {sweep.path}")
        return
    cells = cells_of(sweep)
    if not cells:
        raise UserError(f"{sweep.path}: no job has finished yet; crossvit sweep status shows how they fare")
    table = Table(cells)
    table.write(sweep.path)
    Console().print(table.to_rich())
    print(f"table: {sweep.path / 'table.md'} (also .csv, .json)")


def state_table(sweep: Sweep) -> RichTable:
    """A line a job: what it varies, its state, the figure that its stage watches, how long it took, and what it failed of."""
    grid = RichTable(box=box.SIMPLE_HEAD)
    for name in ("", "Job", "State", "Figure", "Seconds"):
        grid.add_column(name, justify="right" if name in ("", "Seconds") else "left")
    for number, job in enumerate(sweep.jobs):
        figure = "" if job.value is None else f"{job.monitor} {job.value:.4g}"
        seconds = "" if job.seconds is None else f"{job.seconds:.0f}"
        label = job.label if job.error is None else f"{job.label}\n{job.error}"
        grid.add_row(str(number), Text(label), Text(job.state, style=COLOURS[job.state]), Text(figure), seconds)
    return grid


def cells_of(sweep: Sweep) -> list[Cell]:
    """The figures of the finished jobs. A row is named by what is swept; jobs that differ in seed alone share it.

    Of a job that has tested its stages (`pipeline`, `evaluate`) the whole table; of one that has only trained, the validation figure that
    its stage watches, which has no interval.
    """
    cells: list[Cell] = []
    for job in sweep.jobs:
        if job.state != "finished" or job.run_dir is None:
            continue
        row = " ".join(word for word in job.label.split(" ") if not word.startswith("seed=")) or "all seeds"
        if (job.run_dir / "table.json").is_file():
            cells += [replace(cell, row=f"{row}: {cell.row}") for cell in Table.read(job.run_dir).cells]
        elif job.value is not None and not (job.run_dir / "chain.json").is_file():
            log.warning("%s: its run directory %s is gone, left out", job.label, job.run_dir)
        elif job.value is not None:
            cells.append(_watched(job, row))
    return cells


def _watched(job: SweepJob, row: str) -> Cell:
    chain = json.loads((job.run_dir / "chain.json").read_text())
    cfg = OmegaConf.load(job.run_dir / "config.yaml")
    backbone = cfg.patch_encoder.get("backbone") or cfg.patch_encoder
    return Cell(
        row=row,
        dataset=chain[-1]["stage"],
        backbone=str(backbone.get("name") or backbone["_target_"].rsplit(".", 1)[-1]),
        stage=chain[-1]["stage"],
        task="validation",
        direction=None,
        metric=str(job.monitor),
        value=job.value,
        seed=cfg.seed,
    )

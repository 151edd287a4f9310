"""`crossvit study`: one cell of it; Hydra's sweep calls this once for each arm and seed."""

from pathlib import Path

from omegaconf import DictConfig

from crossvit.commands.report import grid_of
from crossvit.commands.run import task_overrides
from crossvit.report.study_tables import write_report
from crossvit.stages.cell import ensure_cell


def run(cfg: DictConfig) -> None:
    """Runs the cell if it is not there, and writes the report once none is lacking."""
    grid_of(cfg).plan.check_cell(cfg.arm.name, cfg.seed)
    if ensure_cell(cfg, task_overrides()):
        grid = grid_of(cfg)
        done, wanted = len(grid.all), len(grid.plan.arms) * len(grid.plan.seeds)
        print(f"study {cfg.study.name}: {done} of {wanted} cells")
        if grid.complete:
            print(f"report: {write_report(grid, Path(cfg.paths.study))}")

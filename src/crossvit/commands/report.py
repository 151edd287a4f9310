"""`crossvit report`: the tables and plots of a study from the cells that are there."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from crossvit.config import group_options
from crossvit.errors import UserError
from crossvit.report.study import Grid, Plan
from crossvit.report.study_tables import write_report


def run(cfg: DictConfig) -> Path:
    """Writes the report beside the cells and prints its text. Raises UserError where there is no cell at all."""
    grid = grid_of(cfg)
    if not grid.all:
        raise UserError(
            f"{cfg.paths.study} holds no cell of study {cfg.study.name}: run crossvit study study={cfg.study.name}"
        )
    path = write_report(grid, Path(cfg.paths.study))
    print(f"{path.read_text()}\nreport: {path}")
    return path


def grid_of(cfg: DictConfig) -> Grid:
    """The study's plan and the cells that are there."""
    plan = Plan.of(OmegaConf.to_container(cfg.study, resolve=True))
    plan.check(group_options("arm"))
    return Grid.read(plan, Path(cfg.paths.study))

"""`crossvit evaluate`: the suite over trained weights, without training anything."""

from pathlib import Path

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides
from crossvit.commands.table import present
from crossvit.config.overrides import override_key
from crossvit.errors import UserError
from crossvit.report.table import Table
from crossvit.stages.evaluating import evaluate_stages, reliability_curves
from crossvit.stages.restore import stage_directories
from crossvit.stages.store import DamagedStage, StoredStage, open_stage


def run(cfg: DictConfig) -> Table:
    """Evaluates every stage of `run`, a run directory or one stored stage, and prints the table.

    Model, picture size and corpus are those of the run; `scenes.<key>` given on the command line names another corpus.
    """
    given = list(map(override_key, task_overrides()))
    scenes = {key: cfg.scenes[key] for key in cfg.scenes if f"scenes.{key}" in given}
    stages = stored_stages(Path(cfg.run))
    cells = evaluate_stages(stages, cfg.suite, cfg.paths, scenes)
    return present(cells, run_directory(), reliability_curves(stages, cells))


def stored_stages(path: Path) -> list[StoredStage]:
    """The stages of a run, the root first, or the one stage that `path` is. Raises UserError where one is missing or damaged."""
    found = []
    for place in stage_directories(path):
        try:
            found.append(open_stage(place))
        except DamagedStage as error:
            raise UserError(
                f"run={path}: the stage {place} is damaged ({error}); run the command that trained it again"
            ) from None
    return found

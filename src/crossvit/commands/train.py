"""`crossvit train`: one stage, and the stages before it where the store does not hold them."""

from pathlib import Path

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides, write_chain
from crossvit.stages.chain import describe, run_chain, watched
from crossvit.stages.ranks import go_on


def run(cfg: DictConfig) -> float | None:
    """Trains up to `stage`, leaves `chain.json` in the run directory, and returns the figure that the stage watches."""
    links = run_chain(task_overrides(), primary="train")
    if not go_on():
        return watched(links[-1])
    directory: Path = run_directory()
    write_chain(directory, links)
    print(describe(links))
    print(f"run: {directory}")
    return watched(links[-1])

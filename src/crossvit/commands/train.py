"""`crossvit train`: one stage, and the stages before it where the store does not hold them."""

from pathlib import Path

from omegaconf import DictConfig

from crossvit.commands.run import run_directory, task_overrides, write_chain
from crossvit.stages.chain import ChainLink, describe, run_chain


def run(cfg: DictConfig) -> list[ChainLink]:
    """Trains up to `stage` and leaves `chain.json` in the run directory."""
    links = run_chain(task_overrides(), primary="train")
    directory: Path = run_directory()
    write_chain(directory, links)
    print(describe(links))
    print(f"run: {directory}")
    return links

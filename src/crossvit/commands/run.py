"""The run directory: where it is, and what every run leaves in it."""

import json
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from crossvit.config import current_invocation
from crossvit.report.atomic import write_atomically
from crossvit.stages.chain import ChainLink
from crossvit.stages.restore import CHAIN


def run_directory() -> Path:
    """The directory of this Hydra job."""
    return Path(HydraConfig.get().runtime.output_dir)


def task_overrides() -> list[str]:
    """What the user gave on the command line, for this job of a sweep."""
    return current_invocation().overrides


def write_chain(directory: Path, links: list[ChainLink]) -> None:
    """`chain.json`: the stages this run stands on, the root first, their places relative to the run directory."""
    stages = [
        {
            "stage": link.config.name,
            "fingerprint": link.stored.fingerprint,
            "path": os.path.relpath(link.stored.path, directory),
            "trained": link.trained,
            "metrics": link.stored.provenance["metrics"],
        }
        for link in links
    ]
    write_atomically(directory / CHAIN, json.dumps(stages, indent=2).encode())

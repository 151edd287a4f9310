"""This process among those that were started side by side, from outside: by torchrun, or as tasks of SLURM's srun.

Processes that the trainer spawns itself are none of these. Only the environment is read, nothing is imported.
"""

import os
from typing import NamedTuple

from crossvit.errors import UserError


class Place(NamedTuple):
    """Rank and number of the processes, and what has started them: "torchrun", "srun", or None for one alone."""

    rank: int
    world: int
    launcher: str | None


def in_slurm_job() -> bool:
    """Whether SLURM has started this process, or what has started it: it then warns of the end and may requeue the job."""
    return "SLURM_JOB_ID" in os.environ


def place() -> Place:
    """Raises UserError where WORLD_SIZE asks for several processes that neither torchrun nor srun has started."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Place(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "torchrun")
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "SLURM_STEP_ID" in os.environ:
        return Place(int(os.environ["SLURM_PROCID"]), tasks, "srun")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("WORLD_SIZE is set: start one process, `trainer=ddp` starts the others itself, or use torchrun")
    return Place(0, 1, None)

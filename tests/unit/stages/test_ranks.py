"""What the first of several processes decides holds for all of them."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from crossvit.errors import UserError
from crossvit.launch import place
from crossvit.stages.ranks import ALONE, Ranks
from tests.distributed import run_distributed


def walk(rank: int, world: int, folder: str) -> list:
    ranks = Ranks(rank, world, dist.new_group(backend="gloo", timeout=timedelta(seconds=60)))
    found = [ranks.decide(lambda: f"rank {rank}")]

    def write_or_find() -> str:
        path = Path(folder, "written")
        if not path.is_file():
            path.write_text(f"by rank {rank}")
        return path.read_text()

    found.append(ranks.in_turn(write_or_find))
    for error in (UserError("data.root is not a folder"), KeyError("x")):
        try:
            ranks.decide(lambda error=error: raise_(error))
        except Exception as raised:
            found.append(f"{type(raised).__name__}: {raised}")
    return found


def raise_(error: Exception) -> None:
    raise error


def test_two_processes(tmp_path):
    first, second = run_distributed(walk, 2, str(tmp_path))
    assert first == ["rank 0", "by rank 0", "UserError: data.root is not a folder", "KeyError: 'x'"]
    assert second == [
        "rank 0",
        "by rank 0",
        "UserError: data.root is not a folder",
        "RuntimeError: rank 0: KeyError('x')",
    ]


def test_one_process_waits_for_nobody():
    assert ALONE.decide(lambda: 3) == ALONE.in_turn(lambda: 3) == 3


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 1, None)),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4"}, (3, 4, "torchrun")),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, (1, 2, "srun")),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, (0, 1, None)),  # the script of a job, which is no task
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, (0, 1, None)),
        (
            {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"},
            (1, 2, "torchrun"),
        ),
    ],
)
def test_place(monkeypatch, variables, found):
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place() == found


def test_processes_of_an_unknown_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start one process"):
        place()

"""Run a test function in several gloo processes on this machine."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import tests.forked  # noqa: F401, what the server of these processes imports


def run_distributed(fn: Callable, world_size: int, *args: Any) -> list[Any]:
    """`fn(rank, world_size, *args)` in `world_size` fresh processes of one gloo group: what each returned, by rank.

    `fn` must be a function of a module (the processes import it by name); arguments and results must pickle. An exception in any
    rank ends all of them and is raised here with its traceback.
    """
    with tempfile.TemporaryDirectory() as directory:
        mp.start_processes(_worker, (world_size, directory, fn, args), nprocs=world_size, start_method="forkserver")
        return [torch.load(Path(directory, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _worker(rank: int, world_size: int, directory: str, fn: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux" and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's own name may not resolve
    dist.init_process_group(
        "gloo",
        init_method=Path(directory, "rendezvous").as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(fn(rank, world_size, *args), Path(directory, f"{rank}.pt"))
        dist.barrier()  # no rank leaves while another still needs it
    finally:
        dist.destroy_process_group()

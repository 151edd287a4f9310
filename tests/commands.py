"""`crossvit` as a user runs it, in a process of its own."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.forked import forkserver

PRIVATE = ("WANDB", "CROSSVIT", "HF_", "HYDRA", "SLURM", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")


class Done(NamedTuple):
    """What a command has left."""

    code: int
    out: str
    err: str
    seconds: float


def environment(home: Path) -> dict[str, str]:
    """This process's environment without keys and settings of its user; one thread, no network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE)}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def run(*arguments: object, home: Path) -> Done:
    """`python -m crossvit <arguments>`, from the start of the interpreter to its end."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "crossvit", *map(str, arguments)],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


class Job:
    """The same command line in a process that finds the libraries imported: seconds less, and it may be watched and killed."""

    def __init__(self, *arguments: object, home: Path, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True)
        self._started = time.monotonic()
        self.process = forkserver.Process(
            target=_command, args=([str(a) for a in arguments], environment(home), str(home), str(logs))
        )
        self.process.start()

    def wait(self, seconds: float = 120) -> Done:
        """Until it ends."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "the command does not end"
        out, err = ((self._logs / name).read_text() for name in ("out", "err"))
        return Done(self.process.exitcode, out, err, time.monotonic() - self._started)

    def wait_for(self, condition, seconds: float = 60) -> None:
        """Until the condition holds, while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), (self._logs / "err").read_text()
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)


def _command(arguments: list[str], variables: dict[str, str], directory: str, logs: str) -> None:
    import torch

    from crossvit import cli

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(logs, name), os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(directory)
    multiprocessing.set_start_method(None, force=True)  # that of the command line, for the data workers
    torch.set_num_threads(1)
    sys.argv = ["crossvit", *arguments]
    code = cli.main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)

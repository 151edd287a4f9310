"""What libraries and the system say when a process, a device or a worker fails, in the words of this project.

A failure in a worker or in a spawned process arrives as the text of its traceback, so it is known by its text. docs/failures.md lists
what is known here.
"""

import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from crossvit.callbacks.rank_watch import read_late
from crossvit.config.validate import SHARDED
from crossvit.errors import Diverged, UserError

EVALUATION = "lower data.eval_batch_size of this entry of the suite"
LOGITS_WEIGH = 4096
"""Global batch from which the contrastive logits of all its pairs are a large part of what a step holds."""
_DEVICE_MEMORY = re.compile(r"CUDA out of memory\.[^\n]*|CU\w+_STATUS_ALLOC_FAILED|out of device memory[^\n]*")
_HOST_MEMORY = re.compile(
    r"DefaultCPUAllocator: [^\n]*|std::bad_alloc|Cannot allocate memory|Unable to allocate [^\n]*|\bMemoryError\b"
)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\)(?: is killed by signal: (.*?)\.| exited unexpectedly)"
)
_IN_WORKER = re.compile(r"Caught (\w+) in (?:DataLoader worker|pin memory thread)[^\n]*")
_LOADER = os.path.join("torch", "utils", "data", "dataloader.py")
_SYSTEM = re.compile(r"\[Errno \d+\] [^\n]*")
_TIMEOUT = re.compile(r"Timed out waiting \d+ms[^\n]*|Watchdog caught collective operation timeout[^\n]*")
_LOST = re.compile(r"Connection (?:closed by peer|reset by peer)[^\n]*|ncclRemoteError[^\n]*|Socket Timeout[^\n]*")


def less_memory(cfg: DictConfig) -> str:
    """What makes the training of a stage need less memory, as far as its config has not set that already."""
    ways = ["lower data.batch_size"]
    below = cfg.data.batch_size if cfg.micro_batch is None else cfg.micro_batch
    if cfg.stage.task == "cross_modal" and below > 1:
        ways.append(f"keep it and set micro_batch=N below {below} (the loss stays that of the whole batch)")
    if cfg.get("checkpoint_activations") is False:
        ways.append("set checkpoint_activations=true")
    if str(cfg.trainer.precision).startswith("32"):
        ways.append("set trainer.precision=bf16-mixed")
    for name in ("itc", "sigmoid"):
        term = cfg.get("objective", {}).get(name)
        tiles = term and term.weight and term.tile is None and not term.get("queue_size")
        if tiles and cfg.data.batch_size >= LOGITS_WEIGH:
            ways.append(f"set objective.{name}.tile=256")
    if str(cfg.trainer.strategy).startswith("ddp") and not str(cfg.trainer.precision).startswith("16"):
        ways.append(f"share the weights out with trainer.strategy={SHARDED}")
    return ", or ".join(ways)


@contextmanager
def explained(where: str, smaller: str, directory: Path | None = None) -> Iterator[None]:
    """Turns a failure that is known into a UserError that begins with `where` and names the settings that help.

    smaller: what makes it need less memory. directory: where the processes of a training leave word of which of them the others wait for
    (`callbacks/rank_watch.py`).
    """
    try:
        yield
    except Exception as error:
        try:
            _report_workers_once()
            reason = explain(error, smaller, directory)
        except RuntimeError as meanwhile:  # the death of a worker, reported from a signal
            error, reason = meanwhile, explain(meanwhile, smaller, directory)
        if reason is None:
            raise
        _end_children()
        diverged = isinstance(error, Diverged) or _marker(Diverged) in str(error)
        raise (Diverged if diverged else UserError)(f"{where}: {reason}") from (
            None if isinstance(error, UserError) else error
        )


def explain(error: Exception, smaller: str, directory: Path | None = None) -> str | None:
    """The line or two of a UserError; None for an error that is not known here, such as a mistake in the code."""
    text = f"{type(error).__name__}: {error}"
    told = _told_by_user_error(error)
    if told is not None:
        return told
    if type(error).__module__.startswith("wandb."):  # a key that is refused, a server that does not answer
        return f"logger.wandb: {error} Set logger.wandb.offline=true, or logger=csv"
    if found := _DEVICE_MEMORY.search(text):
        return f"out of device memory; {smaller} ({_short(found[0])})"
    if found := _WORKER.search(text):
        return _worker(found[1])
    if isinstance(error, ConnectionError | EOFError) and _from_loader(error):  # it died while a batch was handed over
        return _worker(None)
    in_worker = _IN_WORKER.search(text)
    if found := _HOST_MEMORY.search(text):
        if in_worker:
            return f"out of memory in a data worker; lower data.num_workers or data.batch_size ({_short(found[0])})"
        return f"out of memory; {smaller}; or lower data.num_workers ({_short(found[0])})"
    if in_worker and in_worker[1] in ("OSError", "FileNotFoundError", "PermissionError", "ConnectionResetError"):
        found = _SYSTEM.search(text)
        return f"a data worker could not read: {found[0] if found else in_worker[0]}; start the command again once it can be read"
    return _processes(error, text, directory)


def _told_by_user_error(error: Exception) -> str | None:
    """A UserError's own message, without the traceback that a worker or a spawned process puts around it."""
    text = str(error)
    for marker in map(_marker, (UserError, Diverged)):
        if marker in text and (isinstance(error, UserError) or type(error).__name__ == "ProcessRaisedException"):
            return text.rpartition(marker)[2].strip()
    return text if isinstance(error, UserError) else None


def _marker(kind: type[Exception]) -> str:
    """What a traceback writes before the message of such an error."""
    return f"{kind.__module__}.{kind.__qualname__}: "


def _from_loader(error: Exception) -> bool:
    return any(frame.filename.endswith(_LOADER) for frame in traceback.extract_tb(error.__traceback__))


def _report_workers_once() -> None:
    """torch raises the death of a worker once more whenever another child ends; that loaders poll their workers stays."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "").startswith("torch.utils.data"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _end_children() -> None:
    """Data workers that are left: one that opens a socket while this process removes the folder for them makes it end in a traceback."""
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(timeout=5)


def _worker(cause: str | None) -> str:
    if cause is not None and "Bus error" in cause:
        return (
            "a data worker has run out of shared memory (Bus error): lower data.num_workers or data.batch_size, or give the container more "
            "of it (docker --shm-size, /dev/shm)"
        )
    how = f"was killed ({cause})" if cause else "has ended"
    return (
        f"a data worker {how}, as the system does where memory runs out: lower data.num_workers or data.batch_size, or ask for more "
        "memory. The same command goes on from the last checkpoint"
    )


def _processes(error: Exception, text: str, directory: Path | None) -> str | None:
    """A training process that died or does not answer."""
    late = read_late(directory)
    timeout, lost = _TIMEOUT.search(text), _LOST.search(text)
    again = "The same command goes on from the last checkpoint"
    if timeout or (late and (lost or type(error).__name__ == "ProcessExitedException")):
        who = late or "one of the training processes has not arrived where the others wait for it"
        return f"{who}. {again}; collective_timeout=SECONDS waits longer"
    if type(error).__name__ == "ProcessExitedException":
        return (
            f"a training process died ({_short(str(error))}); where it was SIGKILL, memory may have run out: lower data.num_workers or "
            f"data.batch_size. {again}"
        )
    if lost and not isinstance(error, OSError):
        return f"a training process has lost another one ({_short(lost[0])}); the log of that one says why. {again}"
    return None


def _short(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}..."

"""Which of several training processes the others wait for."""

import json
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightning as L
import torch.distributed as dist

LATE = "late.txt"
SHARE = 0.7  # of the timeout, after which a process that makes no progress asks where the others are
SIGNS = 20  # of life, in the time of one timeout
# The last: on a GPU a collective returns at once, and the wait is where its result is read.
WAITING = (
    *(f"torch{os.sep}distributed{os.sep}", f"torch{os.sep}autograd{os.sep}graph.py"),
    f"crossvit{os.sep}distributed.py",
)


class Whereabouts(NamedTuple):
    """Where a process stands: training batches it has begun, whether it waits for the others, the line it is in, and since when."""

    batches: int
    waits: bool
    line: str
    since: float

    def told(self) -> str:
        """For a message."""
        return f"{'waits' if self.waits else 'is'} in {self.line} of batch {self.batches}"


class RankWatch(L.Callback):
    """Says which process does not arrive where the others wait, before their waiting ends in an error that does not name it.

    A thread of each process tells the others, through the store that they met in, where its main thread stands. One that has not moved for
    most of `timeout` seconds looks where the others are: late is who gives no sign of life any more, or stands elsewhere than in a
    collective. It says so on the terminal and in `<trainer.default_root_dir>/late.txt`. The end of the waiting is the process group's own
    timeout. Costs nothing in a step; does nothing for a single process.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._batches = 0
        self._stop: threading.Event | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size == 1 or "MASTER_PORT" not in os.environ:
            return
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            (root / LATE).unlink(missing_ok=True)
        self._stop = threading.Event()
        arguments = (trainer.global_rank, trainer.world_size, root, threading.get_ident(), self._stop)
        threading.Thread(target=self._watch, args=arguments, daemon=True, name="rank watch").start()

    def on_train_batch_start(self, *args: Any) -> None:
        self._batches += 1

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._stop is not None:
            self._stop.set()
            self._stop = None

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout": self.timeout, "_batches": 0, "_stop": None}

    def _watch(self, rank: int, world_size: int, root: Path, main: int, stop: threading.Event) -> None:
        interval = self.timeout / SIGNS
        wait = timedelta(seconds=max(1.0, interval))
        place = Whereabouts(0, False, "", time.time())
        told = False
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=wait
            )
        except (RuntimeError, OSError):
            return
        while not stop.wait(interval):
            now = self._place(main)
            if now[:3] != place[:3]:
                if told:  # it goes on after all
                    (root / LATE).unlink(missing_ok=True)
                place, told = now, False
            try:
                store.set(_key(rank), json.dumps([*place, time.time()]))
                if not told and time.time() - place.since > SHARE * self.timeout:
                    told = True
                    self._tell(store, rank, world_size, root, place, interval)
            except (RuntimeError, OSError):  # the process that holds the store is gone
                if not told and place.waits:
                    _write(root, f"process 0, or its machine, does not answer any more; process {rank} {place.told()}")
                return

    def _place(self, main: int) -> Whereabouts:
        frame = sys._current_frames().get(main)
        waits, line = _where(frame)
        return Whereabouts(self._batches, waits, line, time.time())

    def _tell(self, store: Any, rank: int, world_size: int, root: Path, own: Whereabouts, interval: float) -> None:
        if not own.waits:
            return  # the others wait for this one, and say so
        late = []
        for other in set(range(world_size)) - {rank}:
            if not store.check([_key(other)]):
                late.append(f"process {other}, which has never been here")
                continue
            *fields, seen = json.loads(store.get(_key(other)))
            place = Whereabouts(*fields)
            silent = time.time() - seen
            if silent > 5 * interval:
                late.append(f"process {other}, which gives no sign of life since {silent:.0f} s")
            elif not place.waits:
                late.append(f"process {other}, which {place.told()}")
        if late:
            waited = f"process {rank} of {world_size} has waited {time.time() - own.since:.0f} s in {own.line} of batch {own.batches}"
            _write(root, f"{waited} for {' and '.join(late)}")


def read_late(directory: Path | None) -> str | None:
    """What the processes of the last training in a directory have said of one that did not arrive."""
    path = None if directory is None else directory / LATE
    return path.read_text(encoding="utf-8").strip() or None if path is not None and path.is_file() else None


def _where(frame: FrameType | None) -> tuple[bool, str]:
    """Whether a thread is inside torch's collectives or a backward pass, and the innermost line outside of torch."""
    waits, line = False, "?"
    while frame is not None:
        name = frame.f_code.co_filename
        waits = waits or any(part in name for part in WAITING)
        if f"{os.sep}torch{os.sep}" not in name:
            short = os.sep.join(Path(name).parts[-2:])
            return waits, f"{frame.f_code.co_name} ({short}:{frame.f_lineno})"
        frame = frame.f_back
    return waits, line


def _key(rank: int) -> str:
    return f"crossvit/place/{rank}"


def _write(root: Path, text: str) -> None:
    """Kept by the first that says it: when one process ends, the others seem late as well."""
    print(f"crossvit: {text}", file=sys.stderr, flush=True)
    try:
        with (root / LATE).open("x", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
    except OSError:
        pass

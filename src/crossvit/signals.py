"""SIGTERM and SIGUSR1 for a command as a whole; a training answers them itself (`callbacks/interrupt.py`)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crossvit.errors import Stopped
from crossvit.launch import in_slurm_job

asked: list[int] = []
"""The signals that have asked this command to end."""


@contextmanager
def answered() -> Iterator[None]:
    """Within it, SIGTERM and SIGUSR1 raise `Stopped` where nobody else answers them.

    Files appear whole or not at all, so every place is one to leave at. Under SLURM the handlers are Lightning's and submitit's.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    if in_slurm_job() or threading.current_thread() is not threading.main_thread():
        numbers = ()
    asked.clear()

    def stop(number: int, frame: Any) -> None:
        asked.append(number)
        raise Stopped(number)

    free = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in free:
        signal.signal(number, stop)
    try:
        yield
        if asked:  # raised where Python drops what is raised, e.g. while an object is taken down
            raise Stopped(asked[0])
    except Exception:
        if asked:  # a library has made an error of its own of what was raised in it
            raise Stopped(asked[0]) from None
        raise
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)

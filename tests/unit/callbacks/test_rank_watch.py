"""Two processes, one of which does not arrive: the other one's waiting ends, and the message names it."""

import os
import signal
import sys
import time

import pytest
from lightning.pytorch.strategies import DDPStrategy

import tests.forked  # noqa: F401, what the server of these processes imports
from crossvit.callbacks.rank_watch import RankWatch, _where
from crossvit.errors import UserError
from crossvit.stages.failures import explained
from crossvit.stages.training import set_timeout
from tests.watched import Watched, fit


class Late(Watched):
    """The second process does something in its fourth step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch, batch_idx):
        if self.global_rank == 1 and batch_idx == 3:
            {"sleeps": lambda: time.sleep(300), "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL)}[self.what]()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().training_step(batch, batch_idx)


def train(task, directory, timeout: float) -> None:
    strategy = DDPStrategy(start_method="forkserver")
    set_timeout(strategy, timeout)
    with explained("stage coco", "", directory):
        fit(task, directory, RankWatch(timeout), strategy=strategy, devices=2)


@pytest.mark.slow
def test_one_that_sleeps_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        train(Late("sleeps"), tmp_path, timeout=8)
    text = str(caught.value)
    assert text.startswith("stage coco: process 0 of 2 has waited ") and "for process 1, which is in " in text, text
    assert "of batch 4" in text and "collective_timeout=SECONDS" in text


def test_one_that_is_killed_ends_the_others(tmp_path):
    with pytest.raises(UserError, match=r"stage coco: a training process (died|has lost another one).*last checkpoint"):
        train(Late("is killed"), tmp_path, timeout=60)


def test_a_single_process_starts_no_thread(tmp_path):
    import threading

    watch = RankWatch(4.0)
    fit(Watched(), tmp_path, watch)
    assert "rank watch" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("file", "waits"), [("crossvit/distributed.py", True), ("crossvit/data/loader.py", False)])
def test_reading_the_result_of_a_collective_is_waiting_for_it(file, waits):
    """On a GPU the collective itself has returned by then."""
    space = {"sys": sys}
    exec(compile("def read():\n    return sys._getframe()", file, "exec"), space)
    assert _where(space["read"]()) == (waits, f"read ({os.sep.join(file.split('/')[-2:])}:2)")

"""Commands that are killed, asked to end by a signal, or find no room: the same command again ends as if nothing had been."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise

import pytest
import torch

from tests.commands import Job, environment
from tests.integration.conftest import one_stage
from tests.kills import EVERY_STEP, RUNS, Blow, campaign, command, differences, result, run

KILLS = 20


@pytest.fixture(scope="module")
def killed(corpus, smoke, tmp_path_factory) -> list[dict]:
    """The lines of a small campaign: as many kills of each run."""
    root = tmp_path_factory.mktemp("kills")
    return [line for name in RUNS for line in campaign(name, KILLS // len(RUNS), seed=1, root=root / name, data=corpus)]


@pytest.mark.slow
def test_killed_at_random_moments_every_stage_and_the_chain_end_as_if_they_had_not_been(killed):
    kills, ends = [[line for line in killed if key in line] for key in ("kill", "ended")]
    assert len(kills) == KILLS
    assert {line["run"] for line in ends} == set(RUNS)
    assert [line for line in ends if not line["equal"]] == []
    assert (
        sum(isinstance(line["went_on_from"], dict) and line["went_on_from"]["step"] > 0 for line in kills) > KILLS // 4
    )


VLR = [part for part in command("vlr") if "callbacks.checkpoint" not in part]  # with a checkpoint an epoch: 10 steps


class Whole:
    """The vlr run that nobody disturbs."""

    def __init__(self, root, corpus) -> None:
        self.root, self.corpus = root, corpus
        done, _ = run([*VLR, *self.places(root)], root, root / "logs")
        assert done.code == 0, done.err
        self.result = result(root)

    def places(self, root) -> list[str]:
        return [f"paths.root={root}", f"paths.data={self.corpus}"]

    def go(self, root, blow=None, room=None):
        return run([*VLR, *self.places(root)], root, root / "logs", blow, room)


@pytest.fixture(scope="module")
def whole(corpus, smoke, tmp_path_factory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), corpus)


SIGNALS = [
    pytest.param(Blow("validation", 5, number=signal.SIGTERM), 143, 6, id="SIGTERM in a validation", marks=pytest.mark.slow),
    pytest.param(Blow("step", 5, number=signal.SIGUSR1), 138, 5, id="SIGUSR1 in a step", marks=pytest.mark.slow),
    pytest.param(Blow("step", 11, number=signal.SIGINT), 130, 11, id="Ctrl-C in a step", marks=pytest.mark.slow),
    pytest.param(Blow("step", 10, number=signal.SIGTERM), 143, 10, id="SIGTERM in the last step of an epoch", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("blow", "code", "step"), SIGNALS)
def test_a_signal_ends_it_with_a_checkpoint_and_nothing_is_lost(blow, code, step, whole, tmp_path):
    done, _ = whole.go(tmp_path, blow)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert f"ended by {signal.Signals(blow.number).name}" in done.err
    (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == step
    assert not list(tmp_path.glob("runs/stages/.partial-*/checkpoints/*.partial"))
    done, events = whole.go(tmp_path)
    assert done.code == 0, done.err
    assert next(event["step"] for event in events if event["event"] == "from") == step
    assert differences(whole.result, result(tmp_path)) == []


@pytest.mark.slow
def test_a_disk_that_is_full_ends_it_in_a_line_and_the_checkpoint_before_stays(whole, tmp_path):
    """The longest file that the system lets the command write stands in for the disk."""
    done, _ = whole.go(tmp_path, room=2_000_000)
    assert done.code == 2
    assert "last.ckpt: the checkpoint cannot be written (File too large); there is none yet" in done.err
    assert "paths.runs=DIR" in done.err and "Traceback" not in done.err
    done, _ = whole.go(tmp_path, Blow("step", 5, number=signal.SIGTERM))
    (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    before = last.read_bytes()
    done, _ = whole.go(tmp_path, room=2_000_000)
    assert done.code == 2
    assert "last.ckpt there is that of an earlier step" in done.err and "Traceback" not in done.err
    assert last.read_bytes() == before
    done, _ = whole.go(tmp_path)
    assert done.code == 0, done.err
    assert differences(whole.result, result(tmp_path)) == []


@pytest.mark.slow
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(whole, tmp_path):
    """Which is that of the last validation of the first epoch, in its middle."""
    whole.go(tmp_path, Blow("step", 11, number=signal.SIGTERM))
    (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:100_000])
    done, events = whole.go(tmp_path)
    start = next(event for event in events if event["event"] == "from")
    assert (done.code, start["step"], start["file"]) == (0, 9, "last-1.ckpt"), done.err
    assert f"{last} is damaged" in done.err and f"going on from {last.with_name('last-1.ckpt')}" in done.err
    assert "Traceback" not in done.err
    assert differences(whole.result, result(tmp_path)) == []


@pytest.mark.slow
def test_where_both_checkpoints_are_damaged_the_stage_starts_anew(whole, tmp_path):
    whole.go(tmp_path, Blow("step", 5, number=signal.SIGTERM))
    (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    last.write_bytes(b"")
    last.with_name("last-1.ckpt").write_bytes(b"no checkpoint")
    done, events = whole.go(tmp_path)
    start = next(event for event in events if event["event"] == "from")
    assert (done.code, start["step"], start["file"]) == (0, 0, None), done.err
    assert "trained from its start again" in done.err and "Traceback" not in done.err
    assert differences(whole.result, result(tmp_path)) == []


def at_a_test(logs) -> bool:
    err = logs / "err"
    return err.is_file() and "testing vlr on" in err.read_text()


def test_a_signal_while_data_are_made_leaves_nothing_half_done(start, job, tmp_path):
    arguments = ["data", "make", "scenes", f"paths.root={tmp_path}", "scenes.sizes=smoke"]
    first = start(*arguments)
    first.wait_for(lambda: list(tmp_path.glob("data/**/*.png")) or list(tmp_path.glob("data/**/*.jpg")), seconds=120)
    first.process.terminate()
    done = first.wait()
    assert (done.code, "Traceback" in done.err) in ((143, False), (0, False)), done.err
    done = job(*arguments)
    assert done.code == 0, done.err
    whole = job(*arguments[:3], f"paths.root={tmp_path}/whole", "scenes.sizes=smoke")
    assert whole.code == 0, whole.err
    assert contents(tmp_path / "data") == contents(tmp_path / "whole" / "data")


def contents(folder) -> dict:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_signal_while_a_stage_is_tested_leaves_nothing_half_done(start, job, smoke, corpus, tmp_path):
    arguments = ["pipeline", "experiment=smoke", f"paths.root={tmp_path}", f"paths.data={corpus}", "stage=vlr",
                 "stage.parent=null", "callbacks=quiet", "logger=none"]  # fmt: skip
    first = start(*arguments)
    first.wait_for(lambda: at_a_test(tmp_path / "logs" / "0"), seconds=120)
    first.process.terminate()
    done = first.wait()
    assert done.code == 143, done.err
    assert "Traceback" not in done.err
    for path in tmp_path.glob("runs/stages/*/evaluations/*.json"):
        json.loads(path.read_text())
    done = job(*arguments)
    assert done.code == 0, done.err
    assert "taken from" in done.err


ONE, TWO = "trainer=cpu", "trainer=ddp_sim"
STEPS = ["logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=3", *EVERY_STEP]


def losses(root) -> list[tuple[str, float]]:
    """Of every step, over the global batch."""
    (path,) = root.glob("runs/smoke/metrics/vlr/metrics.csv")
    with path.open(newline="") as file:
        return [(row["step"], float(row["train/loss"])) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def undisturbed(corpus, smoke, tmp_path_factory) -> list[tuple[str, float]]:
    root = tmp_path_factory.mktemp("undisturbed")
    done = Job(*one_stage(root, corpus), *STEPS, home=root, logs=root / "logs").wait()
    assert done.code == 0, done.err
    return losses(root)


class Written:
    """True once a checkpoint has been replaced so many times since this was made."""

    def __init__(self, root, times: int) -> None:
        self.root, self.times, self.seen = root, times, None
        self.seen = self.now()

    def now(self) -> set[int]:
        seen = set(self.seen or ())
        for path in self.root.glob("runs/stages/.partial-*/checkpoints/last.ckpt"):
            with suppress(FileNotFoundError):  # between two renames
                seen.add(path.stat().st_mtime_ns)
        return seen

    def __call__(self) -> bool:
        before, self.seen = self.seen, self.now()
        self.times -= len(self.seen - before)
        return self.times <= 0


@pytest.mark.slow
def test_another_number_of_processes_goes_on_in_the_same_order(vlr, undisturbed, start, job, tmp_path):
    """1, 2 and again 1. The losses of one process after another number of them are those of the run that nobody disturbed: every step has
    met the same samples. (What two processes log is the first one's share.)"""
    reached = []
    for processes in (ONE, TWO):
        running = start(*vlr, *STEPS, processes)
        running.wait_for(Written(tmp_path, 2), seconds=120)
        running.process.terminate()
        done = running.wait()
        assert done.code == 143, done.err
        assert "Traceback" not in done.err
        (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
        reached.append(torch.load(last, weights_only=True)["global_step"])
    done = job(*vlr, *STEPS, ONE)
    assert done.code == 0, done.err
    first, second = reached
    assert 2 <= first < second < 15
    found = losses(tmp_path)
    assert [step for step, _ in found] == [step for step, _ in undisturbed] == [str(step) for step in range(15)]
    by_one = [*range(first), *range(second, 15)]
    expected = [undisturbed[step][1] for step in by_one]
    assert [found[step][1] for step in by_one] == pytest.approx(expected, rel=2e-3)
    assert max(abs(one - other) for (_, one), (_, other) in pairwise(undisturbed[second:])) > 0.1  # samples matter


@pytest.mark.slow
def test_a_warning_of_slurm_reaches_the_processes_that_a_script_of_ones_own_spawns(vlr, tmp_path):
    """The command itself has it, as from `#SBATCH --signal=B:USR1@60`: it hands it on, and ends behind the others."""
    scontrol, queue = tmp_path / "bin" / "scontrol", tmp_path / "queue"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {queue}\n')
    scontrol.chmod(0o755)
    inside = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    command = [
        sys.executable,
        "-m",
        "crossvit",
        *map(str, vlr),
        "trainer=ddp_sim",
        "trainer.max_epochs=500",
        *EVERY_STEP,
    ]
    with subprocess.Popen(
        command, env=environment(tmp_path) | inside, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as job:
        written, end = Written(tmp_path, 1), time.monotonic() + 180
        while not written():
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        err = job.communicate(timeout=60)[1]
    assert job.returncode == 138, err
    assert "ended by SIGUSR1" in err and "Traceback" not in err
    assert queue.read_text() == "requeue 77\n"
    (last,) = tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] > 0

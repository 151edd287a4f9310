"""Commands in directories of their own, and one smoke run that many tests look at."""

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from filelock import FileLock

from tests.commands import Done, Job, run

QUICK = ("logger=none", "callbacks=quiet")


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def crossvit(tmp_path) -> Callable[..., Done]:
    """`python -m crossvit ...` in a real process."""
    return lambda *arguments: run(*arguments, home=tmp_path)


@pytest.fixture
def start(tmp_path) -> Callable[..., Job]:
    """Starts a command and does not wait for it. What is still running at the end is killed."""
    numbers, jobs = count(), []

    def begin(*arguments: object) -> Job:
        jobs.append(Job(*arguments, home=tmp_path, logs=tmp_path / "logs" / str(next(numbers))))
        return jobs[-1]

    yield begin
    for job in jobs:
        if job.process.is_alive():
            job.process.kill()
        job.process.join(10)


@pytest.fixture
def job(start) -> Callable[..., Done]:
    """A command to its end, in a process that is quick to start."""
    return lambda *arguments: start(*arguments).wait()


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that the workers of one test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def corpus(shared) -> Path:
    """A data folder in which every command finds the smoke corpus made."""
    return shared / "data"


@pytest.fixture(scope="session")
def smoke(shared, corpus) -> tuple[Path, Done]:
    """`crossvit pipeline experiment=smoke`, run by the first worker that asks: its root, and what it printed. Look, do not touch."""
    root, kept = shared / "smoke", shared / "smoke.json"
    with FileLock(shared / "smoke.lock"):
        if not kept.is_file():
            root.mkdir()
            done = run("pipeline", "experiment=smoke", f"paths.root={root}", f"paths.data={corpus}", home=root)
            kept.write_text(json.dumps(done))
    done = Done(*json.loads(kept.read_text()))
    assert done.code == 0, done.err
    return root, done


def one_stage(root: Path, corpus: Path) -> list[str]:
    """Arguments for one stage of 5 steps an epoch, with its runs and its store below `root`."""
    stage = ["experiment=smoke", "stage=vlr", "stage.parent=null", *QUICK]
    return ["train", *stage, f"paths.root={root}", f"paths.data={corpus}"]


@pytest.fixture
def vlr(smoke, corpus, tmp_path) -> list[str]:
    """`one_stage` below tmp_path, on the corpus that the smoke run has made."""
    return one_stage(tmp_path, corpus)

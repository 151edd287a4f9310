"""Commands in directories of their own, and one smoke run that many tests look at."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.commands import Done, Job, run

QUICK = ("logger=none", "callbacks=quiet")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.xdist_group("integration"))  # one worker: they share the smoke run


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
def corpus(tmp_path_factory) -> Path:
    """A data folder in which every command finds the smoke corpus made."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, corpus) -> tuple[Path, Done]:
    """`crossvit pipeline experiment=smoke`: the root it ran in, and what it printed. Look, do not touch."""
    root = tmp_path_factory.mktemp("smoke")
    done = run("pipeline", "experiment=smoke", f"paths.root={root}", f"paths.data={corpus}", home=root)
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

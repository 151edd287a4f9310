"""The record of a sweep: names, plans, and which one is meant."""

import json
import os

import pytest

from crossvit.commands.sweep import cells_of
from crossvit.errors import UserError
from crossvit.sweeps import Sweep, automatic_name, digest, find


@pytest.fixture
def record(tmp_path):
    """Writes a sweep `name` of these jobs below tmp_path: overrides -> what its file holds, None for a job without one."""

    def write(name, jobs, swept=("seed",), planned=True):
        folder = tmp_path / "sweeps" / name
        (folder / "jobs").mkdir(parents=True)
        given = [list(job) for job in jobs]
        plan = {"command": "train", "overrides": [], "swept": list(swept), "jobs": given if planned else None}
        (folder / "plan.json").write_text(json.dumps(plan))
        for number, (job, content) in enumerate(jobs.items()):
            if content is not None:
                common = {"overrides": list(job), "num": number, "started": number, "run_dir": f"../../{number}"}
                (folder / "jobs" / f"{digest(job)}.json").write_text(json.dumps(common | content))
        return folder

    return write


def test_a_name_is_that_of_the_same_command():
    name = automatic_name("train", ["seed=0,1", "optimizer.lr=1e-3,1e-4", "model=tiny"])
    assert name.startswith("lr-seed-")
    assert automatic_name("train", ["model=tiny", "optimizer.lr=1e-3,1e-4", "seed=0,1"]) == name
    assert automatic_name("train", ["seed=0,1", "optimizer.lr=1e-3,1e-4", "model=tiny", "paths.runs=x"]) == name
    for other in (["seed=0,1,2", "optimizer.lr=1e-3,1e-4", "model=tiny"], ["seed=0,1", "optimizer.lr=1e-3,1e-4"]):
        assert automatic_name("train", other) != name
    assert automatic_name("pipeline", ["seed=0,1", "optimizer.lr=1e-3,1e-4", "model=tiny"]) != name
    assert automatic_name("train", ["sweep=seeds"]).startswith("seeds-")


def test_a_job_is_known_by_what_it_was_asked_for():
    assert digest(["seed=0", "model=tiny"]) == digest(["model=tiny", "cluster=slurm", "paths.runs=x", "seed=0"])
    assert digest(["seed=0"]) != digest(["seed=1"])


def test_which_sweep_is_meant(record, tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        find(tmp_path, None)
    old, new = record("old", {}), record("new", {})
    os.utime(old / "plan.json", (1, 1))
    assert find(tmp_path, None) == new
    assert find(tmp_path, "old") == find(tmp_path, str(old)) == old
    with pytest.raises(UserError, match=r"no sweep 'odl' in .*Did you mean 'old'\?"):
        find(tmp_path, "odl")


def test_states(record):
    jobs = {("seed=0", "a=1"): {"state": "finished", "value": 0.5, "monitor": "val/acc@1", "seconds": 1.0}}
    jobs |= {("seed=1", "a=1"): {"state": "running"}, ("seed=2", "a=1"): None}
    sweep = Sweep.read(record("mine", jobs))
    assert [(job.label, job.state) for job in sweep.jobs] == [
        ("seed=0", "finished"),
        ("seed=1", "interrupted"),  # nobody holds its lock
        ("seed=2", "missing"),
    ]
    assert sweep.count() == {"finished": 1, "interrupted": 1, "missing": 1}


def test_jobs_that_were_drawn_are_listed_as_they_came(record):
    jobs = {(f"lr={value}",): {"state": "finished"} for value in (0.3, 0.1, 0.2)}
    sweep = Sweep.read(record("tuned", jobs, swept=["lr"], planned=False))
    assert [job.label for job in sweep.jobs] == ["lr=0.3", "lr=0.1", "lr=0.2"]


def test_the_tables_of_jobs_that_have_tested_are_one(record, tmp_path):
    cell = {"row": "VLR", "dataset": "VLR", "backbone": "b", "stage": "vlr", "task": "vlr", "direction": None}
    cell |= {"metric": "Acc@1", "value": 0.5, "low": 0.4, "high": 0.6, "candidates": 2, "chance": 0.5, "queries": 9}
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "table.json").write_text(json.dumps([cell | {"seed": number}]))
    jobs = {(f"seed={seed}", f"fusion={kind}"): {"state": "finished"} for kind in ("late",) for seed in range(2)}
    jobs |= {("seed=2", "fusion=late"): {"state": "failed"}}
    cells = cells_of(Sweep.read(record("tested", jobs, swept=["seed", "fusion"])))
    assert [(c.row, c.seed, c.low) for c in cells] == [("fusion=late: VLR", 0, 0.4), ("fusion=late: VLR", 1, 0.4)]


def test_a_job_whose_run_directory_is_gone_is_left_out(record, caplog):
    jobs = {("seed=0",): {"state": "finished", "value": 0.5, "monitor": "val/accuracy"}}
    assert cells_of(Sweep.read(record("gone", jobs))) == []
    assert "seed=0" in caplog.text and "is gone" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"jobs": []}', "{"])
def test_a_damaged_plan(record, text):
    folder = record("broken", {})
    (folder / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan.json is damaged"):
        Sweep.read(folder)

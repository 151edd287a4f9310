"""cluster=slurm on a real SLURM of one node, which is started for these tests and ended after them."""

import contextlib
import json
import re
import subprocess
import sys
import time

import pytest
import torch

from crossvit.models.weights import read_state_dict
from tests.commands import environment
from tests.slurm.cluster import missing, one_node

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install crossvit[slurm]")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())} (Debian: slurm-wlm and munge)"),
]
SMOKE = ["experiment=smoke", "callbacks=quiet", "paths.run_dir=${paths.runs}/${command}/${run_name}"]
IMAGENET = [*SMOKE, "stage=imagenet", "trainer.max_epochs=60"]  # 180 steps


@pytest.fixture(scope="module")
def node():
    with one_node() as variables:
        yield variables


@pytest.fixture
def start(node, tmp_path):
    """Starts `crossvit train ...` and gives its process; what it prints goes to tmp_path."""
    started = []
    variables = environment(tmp_path) | {key: node[key] for key in ("SLURM_CONF", "PATH")}

    def begin(*words: str, root: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "crossvit", "train", *words, f"paths.root={tmp_path}/{root}"]
        with (tmp_path / f"{root}.out").open("w") as out:
            found = subprocess.Popen(
                [*command, f"paths.data={tmp_path}/data"], env=variables, cwd=tmp_path, stdout=out, stderr=out
            )
        started.append(found)
        return found

    yield begin
    for process in started:
        process.kill()
        process.wait()


def finished(root) -> dict[str, dict]:
    """Weights of the stages that a store holds."""
    stages = [path for path in root.glob("runs/stages/[!.]*") if path.is_dir()]
    return {stage.name: read_state_dict(stage / "weights.safetensors") for stage in stages}


def assert_equal(one: dict[str, dict], other: dict[str, dict]) -> None:
    assert one.keys() == other.keys()
    for mark, weights in one.items():
        assert [name for name, value in weights.items() if not torch.equal(value, other[mark][name])] == []


def in_training(root, but: list[str]) -> str | None:
    """A job of SLURM whose stage has a checkpoint of five steps or more, and which is none of `but`."""
    for path in root.glob("runs/slurm/*/*_log.err"):
        mark = re.search(r"imagenet: training as (\w+)", path.read_text())
        last = root / f"runs/stages/.partial-{mark and mark.group(1)}/checkpoints/last.ckpt"
        try:
            if path.parent.name not in but and torch.load(last, weights_only=True)["global_step"] >= 5:
                return path.parent.name
        except (OSError, RuntimeError):  # none yet, or it is finished just now
            continue
    return None


def wait_for(condition, process: subprocess.Popen, log, seconds: float = 600):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.5)
    return found


def test_a_sweep_of_four_of_which_two_are_preempted_equals_local_runs(node, start, tmp_path):
    """One is put back into the queue by SLURM, one gets the warning that comes before its time is up."""
    log, root = tmp_path / "slurm.out", tmp_path / "slurm"
    words = ["-m", "seed=0,1,2,3", *IMAGENET, "logger=wandb", "logger.wandb.offline=true"]
    sweep = start(*words, "cluster=slurm", root="slurm")
    ways = [["scontrol", "requeue"], ["scancel", "--signal=USR2"]]
    preempted: list[str] = []
    while len(preempted) < len(ways):
        job = wait_for(lambda: in_training(root, but=preempted), sweep, log)
        with contextlib.suppress(subprocess.TimeoutExpired):  # scancel would tell the job again once it runs again
            subprocess.run([*ways[len(preempted)], job], env=node, timeout=2)
        preempted.append(job)
    assert sweep.wait(900) == 0, log.read_text()
    assert "sweep seed-" in log.read_text() and "4 finished" in log.read_text()
    logs = {path.parent.name: path.read_text() for path in root.glob("runs/slurm/*/*_log.err")}
    assert len(logs) == 4
    for job, text in logs.items():
        times = text.count("imagenet: training as")
        assert times >= 2 if job in preempted else times == 1
        assert ("DUE TO JOB REQUEUE" in text) == (job in preempted)

    again = [path for path in root.glob("runs/train/*/wandb") if len(list(path.glob("offline-run-*"))) >= 2]
    assert len(again) == 2  # opened again by the two that went on, each under the id that it had
    for folder in again:
        assert len({path.name.rpartition("-")[2] for path in folder.glob("offline-run-*")}) == 1

    local = start("-m", "seed=0,1,2,3", *IMAGENET, "logger=none", root="local")
    assert local.wait(900) == 0, (tmp_path / "local.out").read_text()
    assert len(finished(root)) == 4
    assert_equal(finished(root), finished(tmp_path / "local"))


def test_a_job_of_two_tasks_trains_what_two_spawned_processes_train(node, start, tmp_path):
    two = [*SMOKE, "stage=vlr", "stage.parent=null", "trainer=ddp_sim", "logger=csv"]
    job = start(*two, "cluster=slurm", root="slurm")
    assert job.wait(400) == 0, (tmp_path / "slurm.out").read_text()
    outputs = [path.read_text() for path in tmp_path.glob("slurm/runs/slurm/*/*_log.out")]
    assert sorted(text.count("trained in") for text in outputs) == [0, 1]  # rank 0 alone speaks
    (run,) = tmp_path.glob("slurm/runs/train/*/chain.json")
    assert [stage["stage"] for stage in json.loads(run.read_text())] == ["vlr"]
    assert re.search(r"sweep train-\w+: 1 finished|sweep [0-9a-f]{6}: 1 finished", (tmp_path / "slurm.out").read_text())
    local = start(*two, root="local")
    assert local.wait(400) == 0, (tmp_path / "local.out").read_text()
    assert_equal(finished(tmp_path / "slurm"), finished(tmp_path / "local"))

"""Processes that torchrun has started train what spawned ones train, and leave one run behind."""

import json
import subprocess
import sys

import pytest
import torch

from crossvit.models.weights import read_state_dict
from tests.commands import environment

OFF = [f"suite.{name}=null" for name in ("coco", "twins", "vsr_compositional")]


@pytest.fixture
def torchrun(tmp_path):
    """`torchrun --nproc-per-node 2 -m crossvit ...`"""

    def run(*words: str) -> subprocess.CompletedProcess:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return subprocess.run(
            [*launcher, "-m", "crossvit", *words],
            env=environment(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.mark.slow
def test_it_trains_what_spawned_processes_train_and_tests_it_once(vlr, torchrun, job, tmp_path):
    _, *words = vlr
    done = torchrun("pipeline", *words, *OFF, "trainer=ddp_sim", "logger=csv", f"paths.root={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained in") == 1 and done.stdout.count("table: ") == 1
    spawned = job(*vlr, "trainer=ddp_sim")
    assert spawned.code == 0, spawned.err
    (one,) = tmp_path.glob("runs/stages/[!.]*/weights.safetensors")
    (two,) = tmp_path.glob("two/runs/stages/[!.]*/weights.safetensors")
    assert one.parent.name == two.parent.name
    weights, others = read_state_dict(one), read_state_dict(two)
    assert [name for name, value in weights.items() if not torch.equal(value, others[name])] == []
    run = tmp_path / "two" / "runs" / "smoke"
    assert json.loads((run / "table.json").read_text())
    assert (run / "pipeline.log").read_text().count("vlr: training as") == 1
    assert (run / "metrics" / "vlr" / "metrics.csv").read_text().count("train/loss") == 1

    again = torchrun("train", *words, "trainer=ddp_sim", f"paths.root={tmp_path}/two")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("taken from the store") == 1


@pytest.mark.slow
def test_weights_that_are_shared_out(vlr, torchrun, job, tmp_path):
    done = torchrun(*vlr, "trainer=fsdp_sim", f"paths.root={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    spawned = job(*vlr, "trainer=fsdp_sim")
    assert spawned.code == 0, spawned.err
    (one,) = tmp_path.glob("runs/stages/[!.]*/weights.safetensors")
    (two,) = tmp_path.glob("two/runs/stages/[!.]*/weights.safetensors")
    weights, others = read_state_dict(one), read_state_dict(two)
    assert weights.keys() == others.keys()
    assert [name for name, value in weights.items() if not torch.equal(value, others[name])] == []


@pytest.mark.slow
def test_a_mistake_ends_all_of_them(vlr, torchrun, tmp_path):
    done = torchrun(*vlr, "trainer=ddp_sim", "trainer.devices=3")
    assert done.returncode != 0
    assert "crossvit: error: trainer.devices=3" in done.stderr
    done = torchrun(*vlr, "trainer=ddp_sim", "data.batch_size=-1")
    assert done.returncode != 0
    assert done.stderr.count("crossvit: error: data.batch_size=-1") == 1

"""Stages that are killed, interrupted, wanted twice, swept, distributed, or go wrong."""

import json
import os
import re
import signal

import pytest
import torch
from omegaconf import OmegaConf

from crossvit.config import compose
from crossvit.models.weights import read_state_dict
from tests.commands import Job
from tests.integration.conftest import one_stage


def finished(root) -> list:
    return [path for path in root.glob("runs/stages/[!.]*") if path.is_dir()]


def checkpoint(root) -> dict:
    (path,) = root.glob("runs/stages/.partial-*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


# 40 steps, a checkpoint after each
LONG = (
    "trainer.max_epochs=8",
    "callbacks.checkpoint.every_n_epochs=null",
    "callbacks.checkpoint.every_n_train_steps=1",
)


class Replaced:
    """True once a file was replaced so many times."""

    def __init__(self, root, times: int) -> None:
        self.root, self.times, self.seen = root, times, set()

    def __call__(self) -> bool:
        for path in self.root.glob("runs/stages/.partial-*/checkpoints/last.ckpt"):
            try:
                self.seen.add(path.stat().st_mtime_ns)
            except FileNotFoundError:
                continue
        return len(self.seen) >= self.times


@pytest.fixture(scope="module")
def whole(corpus, smoke, tmp_path_factory) -> dict:
    """The weights of a run that nobody disturbs, in a root of its own."""
    root = tmp_path_factory.mktemp("whole")
    done = Job(*one_stage(root, corpus), *LONG, home=root, logs=root / "logs").wait()
    assert done.code == 0, done.err
    (stage,) = finished(root)
    assert json.loads((stage / "provenance.json").read_text())["steps"] == 40
    return read_state_dict(stage / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
def test_a_stage_that_is_cut_off_goes_on_and_ends_as_if_it_had_not_been(how, vlr, whole, start, job, tmp_path):
    first = start(*vlr, *LONG)
    first.wait_for(Replaced(tmp_path, 8))
    os.kill(first.process.pid, how)
    done = first.wait()
    assert done.code == (-9 if how == signal.SIGKILL else 130)
    assert finished(tmp_path) == []
    step = checkpoint(tmp_path)["global_step"]
    assert 0 < step < 40
    if how == signal.SIGINT:
        assert "Traceback" not in done.err
    done = job(*vlr, *LONG)
    assert done.code == 0, done.err
    (stage,) = finished(tmp_path)
    assert json.loads((stage / "provenance.json").read_text())["steps"] == 40
    weights = read_state_dict(stage / "weights.safetensors")
    assert set(weights) == set(whole)
    assert [name for name, value in weights.items() if not torch.equal(value, whole[name])] == []
    assert not list(tmp_path.glob("runs/stages/.partial-*"))


def test_two_jobs_at_once_train_it_once(vlr, start, tmp_path):
    jobs = [start(*vlr, "trainer.max_epochs=2", f"paths.run_dir={tmp_path}/{number}") for number in range(2)]
    done = [job.wait() for job in jobs]
    assert [d.code for d in done] == [0, 0], done
    logs = [d.err for d in done]
    assert sum("vlr: training as" in log for log in logs) == 1
    assert sum("another job is training it, waiting" in log or "training as" not in log for log in logs) == 1
    assert sum("vlr: taken from" in log for log in logs) == 1
    assert len(finished(tmp_path)) == 1


@pytest.mark.slow
def test_a_sweep_trains_each_shared_stage_once(job, corpus, smoke, tmp_path):
    """The second backbone is a user's own: one yaml in a directory of theirs."""
    stem = compose(["patch_encoder=conv_stem"]).patch_encoder
    stem = OmegaConf.create(OmegaConf.to_container(stem, resolve=False))
    stem.backbone.widths = [16, 32, 32]
    (tmp_path / "mine" / "patch_encoder").mkdir(parents=True)
    OmegaConf.save(stem, tmp_path / "mine" / "patch_encoder" / "narrow_stem.yaml")
    done = job(
        "train",
        "-m",
        "patch_encoder=conv_stem,narrow_stem",
        "stage=vlr,imagenet,coco",
        "experiment=smoke",
        "debug=fast",
        "callbacks=quiet",
        f"paths.root={tmp_path}",
        f"paths.data={corpus}",
        f"--config-dir={tmp_path}/mine",
    )
    assert done.code == 0, done.err
    trained = re.findall(r"^(\w+): training as (\w+)", done.err, re.MULTILINE)
    taken = re.findall(r"^(\w+): taken from .*/(\w+)$", done.err, re.MULTILINE)
    assert sorted(name for name, _ in trained) == sorted(["imagenet", "coco", "vlr"] * 2)
    assert len({mark for _, mark in trained}) == 6
    # behind each vlr: imagenet is asked for alone, and again below coco
    assert sorted(name for name, _ in taken) == sorted(["imagenet", "imagenet", "coco"] * 2)
    records = [json.loads((stage / "provenance.json").read_text()) for stage in finished(tmp_path)]
    assert sorted(r["stage"] for r in records) == sorted(["imagenet", "coco", "vlr"] * 2)
    chains = [json.loads(path.read_text()) for path in tmp_path.glob("runs/train/*/chain.json")]
    assert sorted(len(chain) for chain in chains) == [1, 1, 2, 2, 3, 3]


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_what_one_trains(vlr, job, tmp_path):
    done = job(*vlr, "trainer=ddp_sim")
    assert done.code == 0, done.err
    alone = job(*vlr, f"paths.root={tmp_path}/one")
    assert alone.code == 0, alone.err
    (two,), (one,) = finished(tmp_path), finished(tmp_path / "one")
    assert two.name == one.name  # the number of devices is not part of a fingerprint
    two, one = (read_state_dict(stage / "weights.safetensors") for stage in (two, one))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_bfloat16(vlr, job, tmp_path):
    done = job(*vlr, "trainer.precision=bf16-mixed")
    assert done.code == 0, done.err
    (stage,) = finished(tmp_path)
    weights = read_state_dict(stage / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_a_stage_whose_weights_are_not_finite_is_not_stored(vlr, job, tmp_path):
    done = job(*vlr, "optimizer.lr=1e30", "trainer.gradient_clip_val=null")
    assert done.code == 2
    assert "stage vlr: " in done.err and "not finite" in done.err
    assert "Traceback" not in done.err
    assert finished(tmp_path) == []
    assert not list(tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt"))

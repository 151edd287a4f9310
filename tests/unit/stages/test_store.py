"""The store of finished stages: atomic, verified, one trainer at a time."""

import json
import logging
import multiprocessing
import os
import signal
import time

import pytest
import torch

from crossvit.models.weights import read_state_dict
from crossvit.stages.store import StageStore

FP = "0123456789abcdef"


def train(store: StageStore, value: float = 1.0, fp: str = FP):
    with store.claim(fp) as claim:
        assert claim.stored is None
        return claim.commit(
            {"w": torch.full((2, 3), value)}, "seed: 0\n", {"stage": "coco", "metrics": {"val/loss": 1.5}}
        )


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_nothing_there(store):
    assert store.get(FP) is None
    assert not store.root.exists()


def test_what_is_committed_is_found(store):
    committed = train(store)
    found = StageStore(store.root).get(FP)
    assert found == committed
    assert found.path == store.root / FP
    assert read_state_dict(found.weights)["w"].tolist() == [[1.0] * 3] * 2
    assert found.config.read_text() == "seed: 0\n"
    assert found.provenance["stage"] == "coco"
    assert found.provenance["metrics"] == {"val/loss": 1.5}
    assert found.provenance["fingerprint"] == FP
    assert found.provenance["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in torch.__version__
    assert {"git_commit", "command"} <= set(found.provenance)
    assert found.provenance["finished"].endswith("+00:00")


def test_the_commit_is_that_of_the_claim(store, monkeypatch):
    from crossvit.stages import provenance

    monkeypatch.setattr(provenance, "git_commit", lambda: "0123")
    with store.claim(FP) as claim:
        monkeypatch.setattr(provenance, "git_commit", lambda: "4567")  # the checkout moves on
        assert claim.commit({"w": torch.ones(1)}, "", {}).provenance["git_commit"] == "0123"


def test_a_second_claim_sees_the_first_ones_work(store):
    stored = train(store)
    with store.claim(FP) as claim:
        assert claim.stored == stored
        with pytest.raises(ValueError, match="stored already"):
            claim.commit({}, "", {})


def test_the_files_of_training_stay_with_the_stage(store):
    with store.claim(FP) as claim:
        (claim.directory / "checkpoints").mkdir()
        (claim.directory / "checkpoints" / "last.ckpt").write_text("x")
        stored = claim.commit({"w": torch.ones(1)}, "", {})
    assert (stored.path / "checkpoints" / "last.ckpt").is_file()
    assert not list(store.root.glob(".partial-*"))


def test_an_interrupted_stage_looks_unfinished_and_goes_on_in_the_same_place(store):
    with pytest.raises(KeyboardInterrupt), store.claim(FP) as claim:
        (claim.directory / "last.ckpt").write_text("step 7")
        raise KeyboardInterrupt
    assert store.get(FP) is None
    with store.claim(FP) as claim:
        assert claim.stored is None
        assert (claim.directory / "last.ckpt").read_text() == "step 7"


@pytest.mark.parametrize("point", ["weights.safetensors", "provenance.json", "complete.json", "rename"])
def test_a_commit_that_is_cut_off_leaves_nothing_finished(store, monkeypatch, point):
    from crossvit.stages import store as module

    def cut(path, *_):
        if path.name == point or point == "rename":
            raise OSError("power cut")
        return original(path, *_)

    name = "_write_weights" if point.startswith("weights") else "_write"
    original = getattr(module, name)
    if point == "rename":
        monkeypatch.setattr(module.os, "replace", lambda *_: cut(store.root))
    else:
        monkeypatch.setattr(module, name, cut)
    with pytest.raises(OSError, match="power cut"):
        train(store)
    monkeypatch.undo()
    assert store.get(FP) is None
    assert train(store).weights.is_file()


@pytest.mark.parametrize("file", ["weights.safetensors", "config.yaml", "provenance.json", "complete.json"])
@pytest.mark.parametrize("how", ["changed", "removed", "emptied"])
def test_a_damaged_stage_is_put_aside_and_trained_again(store, caplog, file, how):
    stored = train(store)
    path = stored.path / file
    if how == "removed":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(b"" if how == "emptied" else data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert store.get(FP) is None
    assert "damaged" in caplog.text
    assert len(list(store.root.glob(f".damaged-{FP}-*"))) == 1
    assert train(store, 2.0).weights.is_file()
    assert read_state_dict(store.get(FP).weights)["w"][0, 0] == 2.0


def test_files_that_are_added_later_do_no_harm(store):
    stored = train(store)
    (stored.path / "evaluations").mkdir()
    (stored.path / "evaluations" / "a.json").write_text("{}")
    assert store.get(FP) == stored


def test_whoever_may_read_the_config_may_read_the_weights(store):
    stored = train(store)
    assert stored.weights.stat().st_mode == stored.config.stat().st_mode


def test_tied_weights(store):
    table = torch.arange(6.0).reshape(2, 3)
    with store.claim(FP) as claim:
        stored = claim.commit({"a": table, "b": table, "c": table[0]}, "", {})
    weights = read_state_dict(stored.weights)
    assert weights["a"].tolist() == weights["b"].tolist() == table.tolist()
    assert weights["c"].tolist() == [0.0, 1.0, 2.0]


def _job(root: str, log: str, hold: float) -> None:
    with StageStore(root).claim(FP) as claim:
        if claim.stored is None:
            with open(log, "a") as stream:
                stream.write(f"{os.getpid()}\n")
            time.sleep(hold)
            claim.commit({"w": torch.ones(1)}, "", {})


def _wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_jobs_train_it_once(store, tmp_path):
    spawn = multiprocessing.get_context("fork")
    log = tmp_path / "trained"
    jobs = [spawn.Process(target=_job, args=(str(store.root), str(log), 0.3)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert len(log.read_text().split()) == 1
    assert store.get(FP) is not None


def test_a_killed_job_gives_the_right_back(store, tmp_path):
    log = tmp_path / "trained"
    job = multiprocessing.get_context("fork").Process(target=_job, args=(str(store.root), str(log), 600))
    job.start()
    _wait_for(log.exists)
    os.kill(job.pid, signal.SIGKILL)
    job.join(60)
    assert store.get(FP) is None
    assert train(store).weights.is_file()


def test_the_one_that_waits_says_so(store, tmp_path, caplog):
    log = tmp_path / "trained"
    job = multiprocessing.get_context("fork").Process(target=_job, args=(str(store.root), str(log), 0.5))
    job.start()
    _wait_for(log.exists)
    with caplog.at_level(logging.INFO, logger="crossvit"), store.claim(FP, label="coco") as claim:
        assert claim.stored is not None
    job.join(60)
    assert f"coco ({FP}): another job is training it, waiting" in caplog.text


def test_provenance_is_plain_json(store):
    stored = train(store)
    assert json.loads((stored.path / "provenance.json").read_text()) == stored.provenance

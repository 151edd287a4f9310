"""The scripts of benchmarks/ run, on sizes that take no time."""

import argparse
import importlib.util
import sys
import time

import numpy as np
import pytest
import torch

from tests.documents import ROOT


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def test_evaluation():
    script = load("evaluation")
    found = script.retrieval(images=20, captions=2, width=8)
    assert (found["images"], found["texts"]) == (20, 40) and found["peak_rss_mib"] >= found["peak_rss_mib_before"] > 0
    assert script.open_clip_retrieval(20, 1, 8)["acc@1"]["image->text"] == pytest.approx(
        script.retrieval(20, 1, 8)["acc@1"]["image->text"], abs=1e-4
    )
    assert script.fused(30)["pairs_per_second"] > 0


@pytest.mark.slow
def test_objectives():
    found = load("objectives").measure("tiny", size=4, words=6, rounds=1, names=["itc", "itc_itm", "pgd", "ema"])
    assert found["itc_itm"]["flops_over_itc_itm"] == 1 < found["itc_itm"]["flops_over_itc"]
    assert found["pgd"]["pair_passes"] > found["itc_itm"]["pair_passes"] > found["itc"]["pair_passes"] > 0
    assert all(figures["cpu_seconds"] > 0 for figures in found.values())


@pytest.mark.slow
def test_execution():
    script = load("execution")
    ways = [way for way in script.WAYS if way != "compile"]  # which takes a minute
    found = script.measure("tiny", size=4, words=6, rounds=1, names=ways)
    assert list(found) == ways and all(figures["cpu_seconds"] > 0 for figures in found.values())
    assert found["checkpoint_activations"]["kept_mib"] < found["fp32"]["kept_mib"]
    assert all(abs(figures["loss"] - found["fp32"]["loss"]) < 0.2 for figures in found.values())
    assert all(figures["fused_over_explicit"] > 0 for figures in script.attention(size=2, rounds=1).values())


def test_soak_tells_a_drift_from_noise():
    script = load("soak")
    hours = np.linspace(0.2, 2, 60)
    noise = np.random.default_rng(0).normal(0, 2, 60)
    still, grows = script.slope(hours, 100 + noise), script.slope(hours, 100 + noise + 5 * hours)
    assert not still["drifts"] and still["low"] < 0 < still["high"]
    assert grows["drifts"] and grows["low"] < 5 < grows["high"]
    flat = script.slope(hours, np.full(60, 14.0))
    assert (flat["per_hour"], flat["low"], flat["high"], flat["drifts"]) == (0, 0, 0, False)
    assert script.reading()["handles"] > 0


def test_contrastive_memory():
    script = load("contrastive_memory")
    image, text = script.embeddings(20, 8, 0, 1)
    found = [script.compute(kind, image, text, torch.tensor(14.0), 6, 0, 1).item() for kind in script.KINDS]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_startup():
    script = load("startup")
    assert not script.imports_torch(["train", "--help"])
    assert script.timed([*script.CROSSVIT, "--help"], ROOT)["cpu_seconds"] > 0
    names = ("help", "config", "debug", "sweep_of_1", "sweep_of_3", "open_clip_help")
    found = script.summary({name: [{"cpu_seconds": n + 1.0, "seconds": n + 2.0}] * 2 for n, name in enumerate(names)})
    assert found["sweep_per_job"]["cpu_seconds"] == 0.5  # of two jobs, one second
    assert found["help"]["cpu_over_open_clip"] == pytest.approx(1 / 6, abs=1e-3)
    assert not found["config"]["imports_torch"]


@pytest.mark.parametrize("reader", ["coco", "karpathy", "caption_list", "table", "caption_folder"])
def test_coco_scale(reader, tmp_path, monkeypatch):
    script = load("coco_scale")
    script.write(reader, tmp_path / "data", images=40, captions=2)
    monkeypatch.setenv("CROSSVIT_STARTED", repr(time.time()))
    given = argparse.Namespace(reader=reader, workers=1, batches=2, batch_size=16)
    found = script.measure(tmp_path / "data", given)
    assert found["seconds_from_start_to_first_batch"] >= found["seconds_of_reading"] >= 0 and found["batches"] == 2
    assert all(len(workers) == 1 and workers[0]["rss"] > 0 for workers in found["worker_mib_at_batch"].values())


@pytest.mark.slow
def test_data(tmp_path):
    script = load("data")
    script.write(tmp_path, None, script.short_side_256, 64)
    found = script.measure(tmp_path, size=32, rounds=1)
    assert found["open_clip"]["over_open_clip"] == 1
    assert all(found[name]["samples_per_cpu_second"] > 0 for name in script.PATHS)


def test_check_memory(tmp_path):
    load("coco_scale").write("coco", tmp_path, 30, 2)
    found = load("check_memory").measure(tmp_path, workers=1)
    assert (found["pictures"], found["captions"]) == (30, 60)


@pytest.mark.slow
def test_train_step():
    script = load("train_step")
    given = argparse.Namespace(batch=2, steps=1, rounds=1, side=32, words=9, precision="bf16", out=None)
    ways = ("crossvit", "crossvit_77", "raw", "open_clip")
    found = script.measure(given, list(ways))
    short, long, peer = (found[way]["gflops_of_a_step"] for way in ("crossvit", "crossvit_77", "open_clip"))
    assert short < long == pytest.approx(peer, rel=0.02)  # the same towers
    for way in ways:
        split = found[way]["split"]
        assert min(split[part] for part in ("forward", "backward", "optimizer")) > 0
        assert sum(split.values()) <= found[way]["cpu_seconds_a_step"] * 1.01
    assert found["crossvit"]["speed_over_open_clip"]["median"] > 0


def test_trainer_overhead():
    found = load("train_step").overhead(steps=12, rounds=1)
    assert found["trainer_us"]["median"] > 0 < found["by_hand_us"]["median"]


@pytest.mark.slow
def test_gpu(tmp_path, monkeypatch, capsys):
    script = load("gpu")
    data = script.Shards(tmp_path, pictures=8, copies=2, workers=0)
    ways = ("synthetic", "shards")  # compiling takes a minute
    found = script.measure("tiny", torch.device("cpu"), 4, 1, data, [], ways)
    assert set(found["ways"]) == {*ways, "loader"}
    assert found["gflops_of_a_pair"] > 0 and found["batch"] == 4
    for way in ways:
        assert found["ways"][way]["utilisation"] > 0 and found["ways"][way]["pairs_per_second"] > 0
    kernels = found["ways"]["synthetic"]["profile"]
    assert kernels[0]["share"] == max(kernel["share"] for kernel in kernels) < 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2 and "no GPU" in capsys.readouterr().err


def test_gpu_halves_a_batch_that_does_not_fit(monkeypatch):
    script, tried = load("gpu"), []

    def measure(model, device, size, *rest):
        tried.append(size)
        if size > 8:
            raise torch.OutOfMemoryError
        return {"batch": size}

    monkeypatch.setattr(script, "measure_batch", measure)
    assert script.measure("tiny", torch.device("cpu"), 40, 1, None, []) == {"batch": 5} and tried == [40, 20, 10, 5]


@pytest.mark.slow
def test_scaling_counts_what_the_formula_says():
    script = load("scaling")
    for row in script.checked([2], "tiny", local=3, words=6, times=1, timed=[("tiny", 3)]):
        if "model" in row:
            assert row["cpu_seconds_a_step"] > 0
        else:
            assert row["carried"] == row["carried_formula"] and row["held"] == row["held_formula"], row


def test_scaling_grows():
    script = load("scaling")
    task, cfg = script.task_of("tiny", "objective=itc_itm")
    sizes = script.sizes_of(task, cfg, words=8)
    assert sizes.parameters == sum(p.numel() for p in task.parameters() if p.requires_grad)
    rows = {
        (world, strategy): script.row_of(script.Formula(sizes, world, 256, "itc_itm", strategy), 0.1, 1e9)
        for world in (1, 8, 1024)
        for strategy in script.STRATEGIES
    }
    assert rows[8, "fsdp"]["held_gib"] <= rows[8, "ddp"]["held_gib"] == rows[1024, "ddp"]["held_gib"]
    assert rows[8, "ddp"]["memory_gib"] < rows[1024, "ddp"]["memory_gib"]  # the gathered features
    assert rows[1, "ddp"]["efficiency"] == 1 > rows[1024, "ddp"]["efficiency"]
    cost = [script.step_cost(task, script.drawn(n, 32, 6, 20)) for n in (2, 4)]
    assert cost[0]["flops"] < cost[1]["flops"] and cost[0]["kept_bytes"] < cost[1]["kept_bytes"]

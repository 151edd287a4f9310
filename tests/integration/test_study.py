"""The smoke study through the command line: its cells, a second run, a kill in its midst, the report alone."""

import hashlib
import json
import os
import shutil
import signal

import pytest

OFF = [f"suite.{name}=null" for name in ("coco", "twins", "vsr_compositional", "attacked_text", "attacked_patch")]


@pytest.fixture
def study(smoke, corpus, tmp_path):
    """Arguments of the smoke study below tmp_path, which takes the stages of the smoke run."""
    shutil.copytree(smoke[0] / "runs" / "stages", tmp_path / "runs" / "stages")
    return ["study", "study=smoke", f"paths.root={tmp_path}", f"paths.data={corpus}"]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results" / "study" / "smoke"


def written(results) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in results.iterdir()} if results.is_dir() else {}


@pytest.mark.slow
def test_its_cells_a_second_run_and_the_report(study, results, job, tmp_path):
    done = job(*study)
    assert done.code == 0, done.err
    assert set(written(results)) == {
        "base-seed0.json",
        "random_negatives-seed0.json",
        "report.md",
        "levels.png",
        "differences.png",
    }
    for arm in ("base", "random_negatives"):
        text = (results / f"{arm}-seed0.json").read_text()
        assert str(tmp_path) not in text
        cell = json.loads(text)
        assert (cell["study"], cell["arm"], cell["seed"]) == ("smoke", arm, 0)
        assert cell["command"] == f"crossvit study arm={arm} seed=0 study=smoke"
        assert [stage["stage"] for stage in cell["stages"]] == ["imagenet", "coco", "vlr"]
        assert cell["fingerprint"] == cell["stages"][-1]["fingerprint"]
        assert cell["steps"] == 5 and cell["seconds"] > 0
        assert cell["pair_passes"] > 5 * 16 and cell["chain_flops"] > cell["flops"] > 0
        assert cell["monitor"] == "val/accuracy" and [step for step, _ in cell["validation"]] == [5]
        assert {"vlr", "twins_fused", "vqcmi"} <= {row["task"] for row in cell["table"]}
        assert {row["row"] for row in cell["table"]} == {arm}
        for stage in cell["stages"]:
            weights = tmp_path / "runs" / "stages" / stage["fingerprint"] / "weights.safetensors"
            assert stage["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    report = (results / "report.md").read_text()
    assert "own weights" not in report
    assert "2 of 2 cells: 2 arms x 1 seeds." in report
    for claim in ("R9", "R11", "R12", "R15", "R20", "R34", "R35"):
        assert f"| {claim} |" in report
    before = written(results)
    again = job(*study)
    assert again.code == 0, again.err
    assert again.err.count("taken from") == 2
    assert written(results) == before


@pytest.mark.slow
def test_killed_in_its_midst_it_leaves_no_half_cell_and_goes_on(study, results, start, job, tmp_path):
    long = [*study, *OFF, "arm=base", "trainer.max_epochs=200"]
    first = start(*long)
    first.wait_for(lambda: list(tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")))
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait()
    assert written(results) == {}
    done = job(*study, *OFF, "arm=base")
    assert done.code == 0, done.err
    assert set(written(results)) == {"base-seed0.json"}
    assert "study smoke: 1 of 2 cells" in done.out
    done = job("report", *study[1:])
    assert done.code == 0, done.err
    assert "**The grid is not complete:** not begun: random_negatives." in done.out
    assert (results / "report.md").read_text() in done.out


def test_no_cell_no_report(study, job):
    done = job("report", *study[1:])
    assert done.code == 2
    assert "holds no cell of study smoke: run crossvit study study=smoke" in done.err

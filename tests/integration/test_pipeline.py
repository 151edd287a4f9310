"""The pipeline on the smallest corpus: what it leaves, and what a second one takes from it."""

import json
import re
import shutil

import pytest

import crossvit as package
from crossvit.stages.store import StageStore
from tests.integration.conftest import QUICK

CELL_KEYS = [
    "row",
    "dataset",
    "backbone",
    "stage",
    "task",
    "direction",
    "metric",
    "value",
    "low",
    "high",
    "candidates",
    "chance",
    "queries",
    "seed",
]


def state(store) -> dict:
    """Fingerprint -> when its weights were written, and where on the disk."""
    files = (path / "weights.safetensors" for path in store.glob("[!.]*"))
    return {file.parent.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


def verbs(err: str) -> dict[str, str]:
    """Stage -> `training` or `taken`, as the log says."""
    return dict(re.findall(r"^(\w+): (training|taken)", err, re.MULTILINE))


@pytest.fixture
def copy(smoke, tmp_path):
    """The smoke run in another place."""
    return shutil.copytree(smoke[0] / "runs", tmp_path / "moved" / "runs").parent


@pytest.fixture
def again(corpus):
    """The pipeline over a root, quickly: the chain alone is of interest."""
    off = [f"~suite.{name}" for name in ("imagenet", "coco", "twins", "vsr_compositional", "vsr_medium")]
    return lambda root: ("pipeline", "experiment=smoke", *QUICK, *off, f"paths.root={root}", f"paths.data={corpus}")


def test_what_a_run_leaves(smoke):
    root, done = smoke
    run = root / "runs" / "smoke"
    cells = json.loads((run / "table.json").read_text())
    assert all(list(cell) == CELL_KEYS for cell in cells)
    assert {"imagenet", "coco", "vlr"} == {cell["stage"] for cell in cells}
    assert {"classification", "vqcmi", "vlr", "blind_text", "blind_image"} <= {cell["task"] for cell in cells}
    for cell in cells:
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
        assert cell["queries"] > 0 and cell["candidates"] >= 2
    for name in ("config.yaml", "overrides.yaml", "chain.json", "table.md", "table.csv", "plots/table.png", "wandb"):
        assert (run / name).exists(), name
    assert (run / "pipeline.log").stat().st_size > 0
    for stage in ("imagenet", "coco", "vlr"):
        assert list(run.glob(f"metrics/{stage}/metrics.csv")), stage
        assert (run / "plots" / f"{stage}.png").is_file()
    assert "Traceback" not in done.err
    assert "Acc@1" in done.out
    for place in ("table.md", "plots", "wandb"):
        assert str(run / place) in done.out
    assert verbs(done.err) == {"imagenet": "training", "coco": "training", "vlr": "training"}


def test_a_second_run_takes_every_stage_from_the_store(smoke, crossvit, corpus):
    root, _ = smoke
    table, before = (root / "runs/smoke/table.json").read_text(), state(root / "runs" / "stages")
    done = crossvit("pipeline", "experiment=smoke", f"paths.root={root}", f"paths.data={corpus}")
    assert done.code == 0, done.err
    assert verbs(done.err) == {"imagenet": "taken", "coco": "taken", "vlr": "taken"}
    assert state(root / "runs" / "stages") == before
    assert len(before) == 3
    assert (root / "runs/smoke/table.json").read_text() == table
    assert done.out.count("taken from the store") == 3
    assert done.seconds < 60


@pytest.mark.slow
def test_statements_about_two_pictures(smoke, job, corpus, tmp_path):
    """Their head is trained and tested by itself: accuracy, consistency, and what each side alone says."""
    done = job(
        *("pipeline", "experiment=smoke", *QUICK, "stage.parent=null", "data=scenes_nlvr2", "objective=two_image"),
        *("suite=nlvr2", "data@suite.nlvr2.data=scenes_nlvr2", f"paths.root={tmp_path}", f"paths.data={corpus}"),
    )
    assert done.code == 0, done.err
    cells = json.loads((tmp_path / "runs/smoke/table.json").read_text())
    assert {(cell["task"], cell["metric"]) for cell in cells} == {
        *(("nlvr2", metric) for metric in ("Acc@1", "AUROC", "consistency")),
        ("nlvr2_blind_text", "Acc@1"),
        ("nlvr2_blind_image", "Acc@1"),
    }
    chance = {cell["metric"]: cell["chance"] for cell in cells}
    assert chance["Acc@1"] == 0.5 and chance["consistency"] < 0.5


def test_load_takes_the_run(smoke):
    model, _, _ = package.load(smoke[0] / "runs" / "smoke")
    assert model.itm.weight.shape == (2, 128)


def test_another_place_and_pace_change_nothing(copy, job, again):
    before = state(copy / "runs" / "stages")
    done = job(*again(copy), "data.num_workers=1", "data.eval_batch_size=8", "run_name=other", "trainer=auto")
    assert done.code == 0, done.err
    assert set(verbs(done.err).values()) == {"taken"}
    assert state(copy / "runs" / "stages") == before


@pytest.mark.slow
def test_what_matters_is_trained_again_and_what_comes_before_is_not(copy, job, again):
    before = state(copy / "runs" / "stages")
    done = job(*again(copy), 'chain.coco=["optimizer.lr=3e-4"]')
    assert done.code == 0, done.err
    assert verbs(done.err) == {"imagenet": "taken", "coco": "training", "vlr": "training"}
    after = state(copy / "runs" / "stages")
    assert len(after) == 5
    assert before.items() <= after.items()


def test_a_damaged_stage_is_put_aside_and_trained_again(copy, job, again):
    store = copy / "runs" / "stages"
    (coco,) = (p.parent for p in store.glob("[!.]*/provenance.json") if json.loads(p.read_text())["stage"] == "coco")
    weights = coco / "weights.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    done = job(*again(copy))
    assert done.code == 0, done.err
    assert verbs(done.err) == {"imagenet": "taken", "coco": "training", "vlr": "taken"}
    assert f"stored stage {coco.name} is damaged" in done.err
    assert len(list(store.glob(f".damaged-{coco.name}-*"))) == 1
    assert weights.read_bytes() == intact  # one CPU process trains the same stage to the bit


class TestEvaluate:
    def test_a_run(self, smoke, job, corpus, tmp_path):
        root, _ = smoke
        arguments = (f"run={root}/runs/smoke", f"paths.root={tmp_path}", f"paths.data={corpus}")
        done = job("evaluate", *arguments)
        assert done.code == 0, done.err
        (found,) = tmp_path.glob("runs/evaluate/*/table.json")
        assert json.loads(found.read_text()) == json.loads((root / "runs/smoke/table.json").read_text())

    @pytest.mark.parametrize("what", ["nowhere", "empty", "damaged"])
    def test_no_run(self, copy, job, tmp_path, what):
        run = tmp_path / what
        if what != "nowhere":
            run.mkdir()
        if what == "damaged":
            stage = next(path for path in (copy / "runs" / "stages").glob("[!.]*"))
            run = stage
            (stage / "config.yaml").write_text("seed: 0\n")
        done = job("evaluate", f"run={run}", f"paths.root={tmp_path}")
        assert done.code == 2
        assert done.err.count("crossvit: error: ") == 1
        assert str(run) in done.err

    def test_a_tampered_config_runs_nothing(self, copy, job, corpus, tmp_path):
        """Even where the marker was made to fit it."""
        (stage,) = (
            path.parent
            for path in (copy / "runs" / "stages").glob("[!.]*/provenance.json")
            if json.loads(path.read_text())["stage"] == "vlr"
        )
        config = (stage / "config.yaml").read_text()
        changed = config.replace("crossvit.models.conv_stem.ConvStem", "torch.os.system")
        assert changed != config
        (stage / "config.yaml").write_text(changed)
        marker = json.loads((stage / "complete.json").read_text())
        import hashlib

        marker["config.yaml"] = hashlib.sha256(changed.encode()).hexdigest()
        (stage / "complete.json").write_text(json.dumps(marker))
        shutil.rmtree(stage / "evaluations")
        assert StageStore(stage.parent).get(stage.name) is not None
        done = job("evaluate", f"run={stage}", f"paths.root={tmp_path}", f"paths.data={corpus}")
        assert done.code == 2
        assert "_target_=torch.os.system" in done.err

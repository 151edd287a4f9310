"""Stage medical and the medical column, through the command line, on a few films in the official schema."""

import json
import shutil

import pytest

from tests.films import few_films
from tests.integration.conftest import QUICK

LENGTH = ("trainer.max_epochs=1", "data.batch_size=6", "data.num_workers=0")


@pytest.fixture
def arguments(smoke, corpus, tmp_path) -> list[str]:
    """The chain of the smoke run, taken from a copy of its store, and the films."""
    shutil.copytree(smoke[0] / "runs" / "stages", tmp_path / "runs" / "stages")
    entries = ("mimic", "mimic_precision", "mimic_zero_shot")
    suite = ["suite=medical", *(f"suite.{name}.data.num_workers=0" for name in entries)]
    places = [f"paths.root={tmp_path}", f"paths.data={corpus}", f"paths.mimic_cxr={few_films(tmp_path / 'mimic')}"]
    return ["pipeline", "experiment=smoke", *QUICK, *suite, "suite.mimic_precision.evaluator.ks=[2,5]", *places]


def cells_of(root) -> list[dict]:
    return json.loads((root / "runs" / "smoke" / "table.json").read_text())


@pytest.mark.slow
def test_the_chain_may_end_in_stage_medical(arguments, job, tmp_path):
    done = job(*arguments, "stage=medical", *LENGTH)
    assert done.code == 0, done.err
    cells = cells_of(tmp_path)
    assert [
        c["stage"] for c in cells if (c["task"], c["direction"], c["metric"]) == ("mimic", "image->text", "Acc@1")
    ] == [
        "imagenet",
        "coco",
        "vlr",
        "medical",
    ]
    last = [cell for cell in cells if cell["stage"] == "medical"]
    assert {cell["dataset"] for cell in last} == {"MIMIC-CXR"}
    tasks = {"mimic", "mimic_fused", "mimic_strict", "mimic_fused_strict", "mimic_precision", "mimic_zero_shot"}
    assert {cell["task"] for cell in last} == tasks
    found = {(cell["task"], cell["direction"], cell["metric"]): cell for cell in last}
    assert found["mimic", "image->text", "Acc@1"]["candidates"] == 6
    assert found["mimic_zero_shot", "Cardiomegaly", "AUROC"]["chance"] == 0.5
    for cell in last:
        assert cell["low"] <= cell["value"] <= cell["high"], cell
        assert cell["queries"] > 0 and cell["candidates"] >= 2
    assert "Medical, precision by class" in (tmp_path / "runs" / "smoke" / "table.md").read_text()
    assert "mean rank" in done.out


@pytest.mark.slow
def test_transfer_trains_from_every_stage_and_from_nothing(arguments, job, tmp_path):
    length = json.dumps(LENGTH[:2])
    transfer = ("transfer.stages=[medical]", "transfer.seeds=[0,1]", f"chain.medical={length}", "data.num_workers=0")
    done = job(*arguments, *transfer)
    assert done.code == 0, done.err
    rows = {(cell["row"], cell["dataset"], cell["stage"], cell["seed"]) for cell in cells_of(tmp_path)}
    names = [f"MIMIC-CXR {start}" for start in ("from scratch", "after ImageNet", "after COCO", "after VLR")]
    assert rows >= {(name, "MIMIC-CXR", "medical", seed) for name in names for seed in (0, 1)}
    assert len(rows) == 3 + 8
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/stages/*/provenance.json")]
    parents = {r["parent"] for r in records if r["stage"].startswith("medical")}
    chain = {r["fingerprint"] for r in records if r["stage"] in ("imagenet", "coco", "vlr")}
    assert parents == chain | {None}
    again = job(*arguments, *transfer)
    assert again.out.count("taken from the store") == 3 + 8 and "2 seeds" in again.out

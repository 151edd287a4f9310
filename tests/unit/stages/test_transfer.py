"""What is trained from every stage of a chain: the plan, and who is handed on to whom."""

from types import SimpleNamespace

import pytest

from crossvit.config import chain_configs, transfer_configs
from crossvit.errors import UserError
from crossvit.metrics.intervals import Estimate
from crossvit.report.cells import Cell
from crossvit.stages import transfer
from crossvit.stages.transfer import evaluate_transfers, plan_transfers, run_transfers
from tests.films import few_films


@pytest.fixture
def given(tmp_path):
    films = few_films(tmp_path / "mimic")
    return [
        "experiment=smoke",
        "stage=coco",
        f"paths.root={tmp_path}",
        f"paths.mimic_cxr={films}",
        "data.num_workers=0",
    ]


def planned(overrides):
    chain = chain_configs(overrides, "pipeline")
    return plan_transfers(chain[-1].cfg, overrides, chain)


def test_a_config_that_starts_elsewhere(given):
    extra = ['chain.medical=["data.batch_size=6"]', "optimizer.lr=0.5", "model.embed_dim=48"]
    config, fresh = transfer_configs([*given, *extra], "medical", ["coco", None], [3])
    assert (config.name, config.cfg.stage.name) == ("medical", "medical_after_coco_seed3")
    assert config.cfg.stage.parent == "coco" and config.cfg.seed == config.cfg.data.seed == 3
    assert config.cfg.data.batch_size == 6  # chain.medical
    assert config.cfg.optimizer.lr == 5e-5  # that of the command line is for the stage asked for
    assert config.cfg.model.embed_dim == 48  # this holds for all
    assert fresh.cfg.stage.parent is None and fresh.cfg.stage.name == "medical_after_nothing_seed3"
    with pytest.raises(UserError, match="seed=-1: must be a whole number"):
        transfer_configs(given, "medical", [None], [-1])


def test_every_start_and_seed(given, monkeypatch):
    overrides = [*given, "transfer.stages=[medical]", "transfer.seeds=[0,1]", 'chain.medical=["data.batch_size=6"]']
    plan = planned(overrides)
    assert [(one.start, one.config.cfg.seed) for one in plan] == [
        (None, 0),
        ("imagenet", 0),
        ("coco", 0),
        (None, 1),
        ("imagenet", 1),
        ("coco", 1),
    ]
    stored = {name: SimpleNamespace(name=name) for name in ("imagenet", "coco")}
    links = [SimpleNamespace(config=SimpleNamespace(name=name), stored=stored[name]) for name in stored]
    monkeypatch.setattr(
        transfer, "ensure", lambda config, data, parent, ranks: SimpleNamespace(stored=parent, seed=config.cfg.seed)
    )
    done = run_transfers(plan, links)
    assert [link.stored for link in done] == [None, *stored.values()] * 2

    estimate = Estimate(0.5, 0.4, 0.6, 10)
    cell = Cell("x", "x", "net", "x", "mimic", None, "Acc@1", *estimate[:3], 2, 0.5, 10, 0)
    monkeypatch.setattr(transfer, "evaluate_stages", lambda stages, suite, paths, scenes: [cell])
    cells = evaluate_transfers(plan[:3], done[:3], chain_configs(overrides, "pipeline")[-1].cfg)
    assert [c.row for c in cells] == ["MIMIC-CXR from scratch", "MIMIC-CXR after ImageNet", "MIMIC-CXR after COCO"]
    assert {(c.dataset, c.stage, c.value) for c in cells} == {("MIMIC-CXR", "medical", 0.5)}


def test_without_transfer_there_is_nothing_to_do(given):
    assert planned(given) == []


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["transfer.stages=[imagenet]"], "transfer.stages: stage imagenet learns from pictures alone"),
        (["transfer.stages=[medicl]"], "medical"),
        (["transfer.stages=[medical]"], r"stage medical: .*data\.batch_size=16 is more than the 12 training samples"),
        (
            ["transfer.stages=[medical]", 'chain.medical=["data.root=nowhere"]'],
            r"stage medical: data\.root=nowhere is not a folder",
        ),
    ],
)
def test_what_cannot_be_trained_is_named_before_anything_is(given, extra, message):
    with pytest.raises(UserError, match=message):
        planned([*given, *extra])

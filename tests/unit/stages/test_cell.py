"""A cell of a study: when it is run, when it is taken, what it says of itself."""

import copy
import json
from functools import cache
from types import SimpleNamespace

import hydra
import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from crossvit.config import chain_configs, config_directory
from crossvit.config.compose import register_resolvers
from crossvit.errors import Diverged, UserError
from crossvit.stages import cell as module
from crossvit.stages.cell import changes, command_line, ensure_cell, settings_of


@cache
def composed(*overrides: str):
    """The stage alone, for an arm that is not in the smoke study: its parents are not asked."""
    given = ["study=smoke", "seed=0", "stage.parent=null", *overrides]
    return chain_configs(given, "study"), given


def of(key: str | None = None, value=None, arm: str = "late", *overrides: str):
    """Configs with one value changed in a copy, which is quicker than composing again; the cell's config; the overrides."""
    (target,), given = composed(f"arm={arm}", *overrides)
    cfg = copy.deepcopy(target.cfg)
    OmegaConf.set_readonly(cfg, False)
    if key is not None:
        OmegaConf.update(cfg, key, value)
    return [target._replace(cfg=cfg)], cfg, given


@pytest.fixture(scope="module")
def settings() -> str:
    configs, cfg, _ = of()
    return settings_of(configs, cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 1), ("paths.root", "elsewhere"), ("data.num_workers", 1), ("study.goal", 0.5), ("scenes.folder", "x")],
)
def test_settings_leave_out(settings, key, value):
    configs, cfg, _ = of(key, value)
    assert settings_of(configs, cfg) == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fusion.depth", 1),
        ("optimizer.lr", 1e-4),
        ("trainer.max_epochs", 9),
        ("scenes.preset", "medium"),
        ("suite.coco.evaluator.rerank", 4),
        ("suite.twins", None),
        ("data.shuffled", 0.5),
    ],
)
def test_settings_hold(settings, key, value):
    configs, cfg, _ = of(key, value)
    assert settings_of(configs, cfg) != settings


def test_settings_leave_out_the_seeds_of_a_mixture():
    digests = set()
    for seed in (0, 1):
        configs, cfg, _ = of("seed", seed, "late", "data=scenes_mixture")
        assert cfg.data.sources.coco.data.seed == seed
        digests.add(settings_of(configs, cfg))
    assert len(digests) == 1


def test_settings_hold_the_stages_before(settings):
    configs, cfg, _ = of()
    parent = of("optimizer.lr", 1e-4)[0]
    assert len({settings, settings_of([*configs, *configs], cfg), settings_of([*parent, *configs], cfg)}) == 3


def test_changes_are_what_the_arm_has_otherwise_than_the_base():
    configs, cfg, given = of()
    assert changes(configs, given, cfg) == {
        "parts.fusion._target_": "crossvit.models.fusion.LateFusion",
        "parts.fusion.meeting_ratio": 2.0,
    }
    configs, cfg, given = of(arm="pair_classifier")
    found = changes(configs, given, cfg)
    assert found["objective.relation.weight"] == 1.0
    assert found["objective.itm.weight"] is None  # gone


def test_the_command_names_no_place_on_this_machine():
    given = ["study=smoke", "arm=late", "seed=3", "paths.root=/somewhere", "run_name=x"]
    assert command_line(of()[1], given) == "crossvit study study=smoke arm=late seed=3"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a cell without training: the times it was really run, and its file."""
    runs = []

    def pretend(cfg, overrides, configs):
        runs.append(cfg.run_name)
        return {"arm": cfg.arm.name, "seed": cfg.seed}

    monkeypatch.setattr(module, "_run", pretend)

    def call(key=None, value=None):
        configs, cfg, given = of(key, value)
        cfg.paths.root = str(tmp_path)
        monkeypatch.setattr(module, "chain_configs", lambda *_: configs)
        return ensure_cell(cfg, given)

    call.runs, call.file = runs, tmp_path / "results/study/smoke/late-seed0.json"
    return call


def test_a_finished_cell_is_taken(run):
    assert run()
    content = json.loads(run.file.read_text())
    assert (content["arm"], content["seed"]) == ("late", 0)
    assert not run()
    assert run.runs == ["smoke/late-seed0"]


def test_other_settings_run_it_again(run):
    assert run()
    before = json.loads(run.file.read_text())["settings"]
    assert run("optimizer.lr", 1e-4)
    assert json.loads(run.file.read_text())["settings"] != before


def test_a_cell_that_another_process_runs_is_skipped(run, tmp_path):
    lock = tmp_path / "runs/study/smoke/late-seed0/cell.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        assert not run()
    assert not run.runs and not run.file.exists()
    assert run()


def test_a_cell_that_fails_leaves_no_file_and_no_lock(run, monkeypatch):
    def fail(*_):
        raise UserError("too little memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", fail)
        with pytest.raises(UserError, match="memory"):
            run()
    assert not run.file.exists()
    assert run()


def test_a_training_that_diverges_is_a_result(run, monkeypatch, tmp_path):
    def fail(*_):
        raise Diverged(
            f"stage vlr: the loss is not finite in step 3 ({tmp_path}/runs/stages/ab/health.jsonl).\nLower optimizer.lr"
        )

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", fail)
        assert run()
    content = json.loads(run.file.read_text())
    assert (
        content["failed"] == "stage vlr: the loss is not finite in step 3 (ab/health.jsonl)." and "table" not in content
    )
    assert {"arm", "seed", "git_commit", "command", "settings", "finished"} <= set(content)
    assert not run() and not run.runs  # it would again


def test_a_damaged_file_is_named_and_not_overwritten(run):
    run.file.parent.mkdir(parents=True)
    run.file.write_text("{")
    with pytest.raises(UserError, match=r"late-seed0.json is no cell of a study"):
        run()
    assert run.file.read_text() == "{"


def test_seeds_and_arms_of_the_sweep_are_those_of_the_study():
    register_resolvers()
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        cfg = hydra.compose("study", ["study=smoke", "study.seeds=[3,5]"], return_hydra_config=True)
        params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    assert params == {"arm": "base,random_negatives", "seed": "3,5"}


def test_the_checks_are_those_of_the_tasks_in_the_table(tmp_path):
    kept = tmp_path / "evaluations"
    kept.mkdir()
    for name, content in (
        ("robustness_text", {"checks": {"a": True}}),
        ("robustness_pixel", {"checks": {"a": False}}),
        ("vlr", {}),
    ):
        (kept / f"{name}.json").write_text(json.dumps(content))
    stored = SimpleNamespace(path=tmp_path)
    assert module._checks(stored, {"robustness_text", "vlr", "twins"}) == {"robustness_text": {"a": True}}

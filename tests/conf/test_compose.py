"""Every file of conf/ composes, is valid, and names things that exist and take the keywords they are given."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from crossvit.config import chain_configs, check_signatures, compose, config_directory, group_options, validate
from crossvit.config.chain import MODEL_PARTS
from crossvit.config.targets import SPECIAL, _own_signature, target_nodes
from crossvit.config.validate import SHARDED
from crossvit.errors import UserError
from crossvit.help import config_groups
from crossvit.report.study import Plan
from crossvit.sharding import ShardedStrategy
from crossvit.stages.build import make

CONF = config_directory()
PRIMARIES = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = [(group, option) for group, options in config_groups(CONF).items() for option in options]
BUILT = ("optimizer", "scheduler", "objective", "callbacks", "logger")


def filled_chain(overrides: list[str], primary: str):
    """The chain of configs, with a placeholder for each value that a recipe leaves to the user (`???`)."""
    for _ in range(10):
        try:
            return chain_configs(overrides, primary)
        except UserError as error:
            before, marker, _ = str(error).partition(": has no value yet")
            if not marker:
                raise
            overrides = [*overrides, f"{before.rpartition(': ')[2]}=placeholder"]
    raise AssertionError(f"gaps without end: {overrides}")


def primary_for(group: str) -> str:
    return {"suite": "pipeline", "study": "study"}.get(group, "train")


def overrides_for(group: str, option: str) -> list[str]:
    """A composition in which this option makes sense."""
    overrides = [f"{group}={option}"]
    if not whole_chain(group):
        overrides.append("stage.parent=null")
    if (group, option) == ("objective", "classification"):
        overrides.append("stage=imagenet")
    if option == "fsdp_2x8":
        overrides.append("cluster=slurm")  # its processes come from outside
    if (group, option) == ("objective", "terms"):
        overrides.append("objective.itc.weight=1")
    return overrides


def test_every_file_belongs_to_a_test():
    files = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    tested = {f"{primary}.yaml" for primary in PRIMARIES} | {f"{group}/{option}.yaml" for group, option in OPTIONS}
    hydra = {"hydra/job_logging/crossvit.yaml", "hydra/hydra_logging/crossvit.yaml"}  # part of every primary
    hydra |= {"hydra/launcher/slurm.yaml", "hydra/sweeper/tune.yaml"}  # of cluster=slurm and sweep=tune
    assert files == tested | hydra


@pytest.mark.parametrize("primary", PRIMARIES)
def test_primary(primary):
    cfg = compose(["run=runs/demo"] if primary == "evaluate" else [], primary)
    validate(cfg)
    assert cfg.command == primary


def whole_chain(group: str) -> bool:
    """Whether an option of the group reaches every stage of the chain; for the rest one stage is enough."""
    return group in ("stage", "experiment", "debug", "study")


@pytest.mark.parametrize(
    ("group", "option"),
    [
        pytest.param(g, o, marks=[pytest.mark.slow] * whole_chain(g))
        for g, o in OPTIONS
        if g not in ("arm", *BUILT)  # these have tests of their own
    ],
)
def test_option(group, option):
    for link in filled_chain(overrides_for(group, option), primary_for(group)):
        check_signatures(link.cfg)


RECIPES = [(g, o) for g, o in OPTIONS if g in ("experiment", "debug", "study")]


@pytest.mark.parametrize(("group", "option"), RECIPES)
def test_resources_win_over_the_device_of_a_recipe(group, option):
    found = compose([f"{group}={option}", "resources=ddp_8"], primary_for(group)).trainer
    assert (found.accelerator, found.devices, found.strategy) == ("gpu", 8, "ddp_spawn")


def _targets() -> list[str]:
    found = set()
    for path in CONF.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip(" -") == "_target_":
                found.add(value.partition("#")[0].strip())
    return sorted(found)


@pytest.mark.parametrize("target", [target for target in _targets() if target.startswith("crossvit.")])
def test_the_signature_read_from_the_source_is_the_real_one(target):
    """Where the source says which keywords fit, Python says the same."""
    static = _own_signature("node", target)
    found = get_object(target)
    chain = [c.__init__ for c in found.__mro__ if "__init__" in vars(c)] if isinstance(found, type) else [found]
    names: set[str] = set()
    for function in chain:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    assert names <= static.names or static.open


def _top_nodes(node):
    if node is None:
        return []
    if "_target_" in node:
        return [node]
    return [child for child in node.values() if OmegaConf.is_dict(child) and "_target_" in child]


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, o in OPTIONS if g in BUILT])
def test_builds(group, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    [link] = filled_chain(overrides_for(group, option), primary_for(group))
    cfg = link.cfg
    check_signatures(cfg)
    built = [make(node) for node in _top_nodes(cfg[group])]
    assert built or option == "none"
    if group == "optimizer":
        optimizer = built[0]([{"params": [torch.nn.Parameter(torch.ones(2))]}])
        assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr
    if group == "scheduler":
        factors = [built[0](step, 100) for step in range(100)]
        assert max(factors) == pytest.approx(1.0)
        assert min(factors) >= 0


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "trainer"])
def test_trainer_takes_its_settings(option, tmp_path):
    import lightning as L

    settings = OmegaConf.to_container(compose([f"trainer={option}"]).trainer, resolve=True)
    assert settings.pop("_target_") == "lightning.Trainer"
    if settings["accelerator"] == "gpu" and not torch.cuda.is_available():
        settings.update(accelerator="cpu", devices=1, strategy="auto")
    if settings["strategy"] == SHARDED:
        settings["strategy"] = ShardedStrategy()
    L.Trainer(**settings, logger=False, default_root_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g, o in OPTIONS if g in ("stage", "experiment", "arm", "sweep")]
)
def test_header_says_what_it_is(group, option):
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    if group == "experiment":
        header = "\n".join(line for line in lines if line.startswith("#"))
        assert all(word in header for word in ("# command:", "# cost:", "# expected:"))
    if group == "arm":
        assert [line.partition(":")[0] for line in lines[2:4]] == ["# tests", "# claim"]


@pytest.fixture(scope="module")
def plain():
    return compose([])


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(o, marks=[pytest.mark.slow] * (o not in ("base", "late", "bag_of_words", "full")))
        for g, o in OPTIONS
        if g == "arm"
    ],
)
def test_an_arm_composes_says_its_own_name_and_changes_something(option, plain):
    arm = compose([f"arm={option}"])
    validate(arm)
    check_signatures(arm)
    assert arm.arm.name == option
    changed = {key for key in plain if plain[key] != arm[key]} - {"arm", "run_name"}
    assert (changed or arm.arm.length != 1) or option == "base"
    if changed & {"model", *MODEL_PARTS}:  # the stages before have the same model, or their weights would not fit
        *parents, target = chain_configs([f"arm={option}"])
        assert [link.name for link in parents if any(link.cfg[part] != target.cfg[part] for part in MODEL_PARTS)] == []


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "study"])
def test_a_study_names_arms_that_are_there(option):
    study = compose([f"study={option}"], "study").study
    Plan.of(OmegaConf.to_container(study, resolve=True)).check(group_options("arm"))
    assert study.name == option
    assert ("study", option) in OPTIONS and set(study.arms) <= {o for g, o in OPTIONS if g == "arm"}


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "sweep"])
def test_a_sweep_names_options_that_are_there(option):
    groups = config_groups(CONF)
    params = OmegaConf.load(CONF / "sweep" / f"{option}.yaml").hydra.sweeper.params
    assert params
    for key, values in params.items():
        assert key not in groups or set(values.split(",")) <= set(groups[key])


def test_special_keys_are_hydras():
    from hydra._internal.instantiate import _instantiate2

    assert {key.value for key in _instantiate2._Keys} == set(SPECIAL)


def test_no_config_names_a_place_on_a_machine():
    for path in CONF.rglob("*.yaml"):
        for key, value in _values(OmegaConf.to_container(OmegaConf.load(path), resolve=False)):
            assert not (isinstance(value, str) and Path(value).is_absolute()), f"{path}: {key}={value}"


def _values(node, prefix=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _values(value, f"{prefix}{key}.")
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, prefix)
    else:
        yield prefix, node


def test_target_nodes_finds_nested_nodes():
    plain = {"a": {"_target_": "x", "b": [{"_target_": "y"}]}}
    assert [key for key, _ in target_nodes(plain)] == ["a", "a.b[0]"]

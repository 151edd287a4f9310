"""What is counted, and that counting changes nothing."""

import json
import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from crossvit.callbacks import compute
from crossvit.callbacks.compute import ComputeCount, pair_flops
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.matching import MatchingLoss
from tests.small import cross_modal, cross_vit, pairs


class Line(L.LightningModule):
    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)
        self.fails = fails

    def training_step(self, batch, batch_idx):
        if self.fails:
            raise RuntimeError("broken")
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class NormedStem(nn.Module):
    """(B, 3, H, W) -> (B, 8, H / 8, W / 8), with a BatchNorm whose statistics move in every forward pass."""

    num_channels, stride = 8, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8)

    def forward(self, image):
        return self.norm(self.conv(image))


def fit(task, batches, directory, callbacks=(), **settings):
    L.seed_everything(7, verbose=False)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(directory),
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return json.loads((directory / "compute.json").read_text()) if callbacks else None


def test_a_linear_layer_by_hand(tmp_path):
    batches = [torch.ones(4, 3)] * 4
    found = fit(Line(), batches, tmp_path, [ComputeCount(2)])
    # forward 4x3 @ 3x2 and the gradient of the weight 2x4 @ 4x3, two operations a multiply-add; the input needs no gradient
    assert found == {"flops_per_step": 2 * 2 * 4 * 3 * 2, "pair_passes_per_step": None, "flops_per_pair": None}
    accumulated = fit(Line(), batches, tmp_path, [ComputeCount(2)], accumulate_grad_batches=2)
    assert accumulated["flops_per_step"] == 2 * found["flops_per_step"]


def test_a_stage_of_fewer_batches_is_counted_too(tmp_path):
    assert fit(Line(), [torch.ones(4, 3)], tmp_path, [ComputeCount(3)])["flops_per_step"] == 96


def test_the_file_is_written_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(compute, "write_atomically", lambda path, data: (written.append(path), path.write_bytes(data)))
    fit(Line(), [torch.ones(4, 3)] * 5, tmp_path, [ComputeCount(2)])
    assert len(written) == 1


def test_a_step_that_fails_leaves_no_counter_behind(tmp_path):
    callback = ComputeCount()
    with pytest.raises(RuntimeError, match="broken"):
        fit(Line(fails=True), [torch.ones(4, 3)], tmp_path, [callback])
    assert callback._counter is None
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def passes(terms, tmp_path, batch=None, **arguments) -> float:
    batch = pairs(range(6), negatives=2) if batch is None else batch
    return fit(cross_modal(terms, **arguments), [batch], tmp_path, [ComputeCount()])["pair_passes_per_step"]


def test_a_step_without_negatives_is_one_pass_a_pair(tmp_path):
    plain = {"itc": ContrastiveLoss(generated_negatives=False), "itm": MatchingLoss(1.0, False, False)}
    assert passes(plain, tmp_path) == pytest.approx(6, rel=0.01)  # the similarity matrix is the rest


def test_negatives_cost_what_they_add(tmp_path):
    plain, hard, generated, both = (
        passes({"itm": MatchingLoss(1.0, *switches)}, tmp_path)
        for switches in ((False, False), (True, False), (False, True), (True, True))
    )
    assert plain < hard < both
    assert plain < generated < both
    unit, fusion = _shares()
    # each pair's image with a drawn caption and its caption with a drawn image: two more fusions a pair
    assert (hard - plain) / 6 == pytest.approx(2 * fusion / unit, rel=0.05)


def _shares() -> tuple[float, float]:
    """FLOPs of a pair-pass, and of the fusion and head alone, forward and backward."""
    from crossvit.callbacks.compute import flop_counter
    from crossvit.models.text_encoder import TextFeatures

    model, batch = cross_vit(), pairs(range(6))
    visual, text = model.visual_features(batch.image), model.text_features(batch.tokens, batch.token_mask)
    inputs = [x.detach().requires_grad_() for x in (visual, text.tokens, text.pooled)]
    with flop_counter() as counter:
        fused = model.fuse(inputs[0], TextFeatures(inputs[1], inputs[2], text.mask), pooled_only=True)
        model.match_logits(fused).sum().backward()
    return pair_flops(cross_vit(), batch), counter.get_total_flops() / 6


def test_two_pictures_a_statement(tmp_path):
    batch = pairs(range(6), label=[0, 1] * 3, two_images=True)
    assert 6 < passes(["two_image"], tmp_path, batch) < 13


@pytest.mark.parametrize("frozen", [False, True])
def test_the_unit_is_the_same_whatever_the_objective_freezes(frozen):
    model = cross_vit()
    before = pair_flops(model, pairs(range(4)))
    model.fusion.requires_grad_(not frozen)
    assert pair_flops(model, pairs(range(4))) == before
    assert all(p.grad is None for p in model.parameters())


def test_inner_steps_cost_what_they_add(tmp_path):
    costs = {}
    for steps in (1, 3):
        attack = AdversarialLoss(algorithm="freelb", steps=steps)
        costs[steps] = passes({"itm": MatchingLoss(), "adversarial": attack}, tmp_path)
    clean = passes({"itm": MatchingLoss()}, tmp_path)
    assert clean < costs[1] < costs[3]
    # one more step of ascent adds the same each time: forward and backward of the attacked pass
    assert (costs[3] - costs[1]) / 2 == pytest.approx(costs[1] - clean, rel=0.6)


@pytest.mark.parametrize("terms", [["itc", "itm"], ["itc", "itm", "distill", "crossdual", "adversarial"]], ids=" ".join)
def test_nothing_that_training_reads_is_touched(terms, tmp_path):
    """Weights, BatchNorm statistics and random numbers are those of a run without the callback, to the bit."""

    def run(callbacks):
        task = cross_modal(terms)
        for model in (task.model, *([task.teacher.model] if task.teacher else [])):
            model.patch_encoder = PatchEncoder(NormedStem(), 16, (4, 4))
        for module in task.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        batches = [pairs(range(6), negatives=2, seed=seed) for seed in range(5)]
        fit(task, batches, tmp_path, callbacks)
        return task.state_dict(), torch.get_rng_state()

    torch.manual_seed(0)
    plain, state = run([])
    torch.manual_seed(0)
    counted, counted_state = run([ComputeCount(3)])
    assert plain["model.patch_encoder.backbone.norm.num_batches_tracked"] == 5
    assert all(torch.equal(value, counted[name]) for name, value in plain.items())
    assert torch.equal(state, counted_state)
    assert all(math.isfinite(value.float().sum()) for value in counted.values())

"""The objectives that reach into the training loop (teacher, queue, adversary), trained as users train them."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from crossvit.errors import UserError
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import CrossDualLoss, DistillationLoss
from crossvit.objectives.masked import MaskedLanguageLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.objectives.sigmoid import SigmoidLoss
from tests.distributed import run_distributed
from tests.small import cross_modal, pairs

BATCHES = [pairs(range(8 * s, 8 * s + 8), negatives=1, seed=s) for s in range(6)]
ADVERSARIES = {
    "pgd": partial(AdversarialLoss, steps=2),
    "freelb": partial(AdversarialLoss, algorithm="freelb", steps=2, init="uniform"),
    "villa": partial(AdversarialLoss, algorithm="villa", steps=2),
    "villa, clean side moves": partial(AdversarialLoss, algorithm="villa", steps=2, kl_detach=False),
    "vat": partial(AdversarialLoss, algorithm="vat"),
    "teacher": partial(AdversarialLoss, target="teacher", spaces=["text"]),
    "pixel": partial(AdversarialLoss, spaces=["pixel"], norm="linf", through_cnn=True),
}


def attacked(name: str, dropout: float = 0.0):
    task = cross_modal({"itc": ContrastiveLoss(), "itm": MatchingLoss(), "adversarial": ADVERSARIES[name](0.7)})
    for module in task.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return task


def fit(task, batches=BATCHES, callbacks=(), ckpt_path=None, **settings) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 1} | settings,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def gradient(task, batch, precision: str = "32") -> torch.Tensor:
    """All gradients of the first step as one vector, as the optimiser would see them."""
    seen = []
    task.configure_gradient_clipping = lambda *args, **kwargs: seen.append(
        torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
    )
    fit(task, [batch], precision=precision, gradient_clip_val=1.0)
    return seen[0]


def fp16_gradient(task, batch) -> torch.Tensor:
    """By hand: on a CPU Lightning trains `16-mixed` in bfloat16."""
    task.log_figures = lambda figures: None
    original, scale = task.state, 1024.0

    def scaled(*args):
        state = original(*args)
        state.loss_scale = scale
        return state

    task.state = scaled
    with torch.autocast("cpu", torch.float16):
        loss = task.training_step(batch, 0)
    (scale * loss).backward()
    return torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None]) / scale


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp16"])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_half_precision_gives_the_gradient_of_full_precision(name, precision):
    full = gradient(attacked(name), BATCHES[0])
    half = (
        fp16_gradient(attacked(name), BATCHES[0])
        if precision == "fp16"
        else gradient(attacked(name), BATCHES[0], precision)
    )
    assert torch.isfinite(half).all()
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.99
    assert half.norm().item() == pytest.approx(full.norm().item(), rel=0.1)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_accumulated_gradients_are_the_mean_of_those_of_the_batches(name):
    apart = sum(gradient(attacked(name), batch) for batch in BATCHES[:2]) / 2
    seen, task = [], attacked(name)
    task.configure_gradient_clipping = lambda *args, **kwargs: seen.append(
        torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
    )
    task.training_step_of = task.training_step
    task.training_step = lambda batch, batch_idx: task.training_step_of(batch, 0)  # each draws as the first batch does
    fit(task, BATCHES[:2], accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_gradient_of_an_attack_is_clipped_with_the_rest(name):
    task, seen = attacked(name), []
    task.on_before_zero_grad = lambda optimizer: seen.append(
        [p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )
    fit(task, BATCHES[:2], gradient_clip_val=1e-3)
    assert torch.cat([grad.flatten() for grad in seen[-1]]).norm().item() == pytest.approx(1e-3, rel=1e-3)


class Step(nn.Module):
    """What DistributedDataParallel wraps: forward is the training step, as in Lightning."""

    def __init__(self, task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch):
        return self.task.training_step(batch, 0)


def under_ddp(rank: int, world: int, name: str) -> list[torch.Tensor]:
    """Gradients of two micro-batches, the first without synchronisation, as accumulation does it."""
    task = attacked(name)
    module = DistributedDataParallel(Step(task)) if world > 1 else Step(task)
    for number, batch in enumerate(BATCHES[:2]):
        local = batch._replace(**{k: v[rank::world] for k, v in batch._asdict().items() if v is not None})
        if world > 1 and number == 0:
            with module.no_sync():
                module(local).backward()
        else:
            module(local).backward()
    return [p.grad for p in task.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["pgd", "freelb", "villa, clean side moves", "teacher"])
def test_data_parallel_training_gives_the_gradients_of_one_process(name):
    alone = under_ddp(0, 1, name)
    for grads in run_distributed(under_ddp, 2, name):
        for mine, theirs in zip(grads, alone, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def everything():
    """Terms with a memory (teacher, queue), with random numbers of their own (MLM, the adversary), and the rest."""
    torch.manual_seed(0)
    return cross_modal(
        {
            "itc": ContrastiveLoss(0.6, queue_size=20),
            "itm": MatchingLoss(),
            "mlm": MaskedLanguageLoss(0.5),
            "distill": DistillationLoss(0.4, matching=True, ramp=4),
            "crossdual": CrossDualLoss(),
            "adversarial": AdversarialLoss(algorithm="freelb", steps=2, init="uniform"),
        },
        teacher_momentum=0.5,
    )


def test_a_resumed_run_ends_bit_for_bit_where_an_undisturbed_one_does(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
    whole = everything()
    fit(whole, callbacks=[keep], max_epochs=2)
    resumed = everything()
    fit(resumed, callbacks=[ModelCheckpoint(tmp_path / "more")], max_epochs=2, ckpt_path=str(tmp_path / "step=6.ckpt"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    student, teacher = whole.model.itm.weight, whole.teacher.model.itm.weight
    assert not torch.equal(student, teacher)
    assert len(whole.terms["itc"].queue.image_id) == 20


def test_the_teacher_follows_once_an_optimiser_step():
    task = cross_modal({"itc": ContrastiveLoss(), "distill": DistillationLoss()}, teacher_momentum=0.5)
    steps, follow = [], task.teacher.follow
    task.teacher.follow = lambda model, **kwargs: steps.append(kwargs) or follow(model, **kwargs)
    task.model.itc_text.weight.data.fill_(0.125)  # what a parent stage hands over, after the task was built
    trainer = fit(task, accumulate_grad_batches=2)
    assert trainer.global_step == 3
    assert steps == [{"momentum": 0.0}, {}, {}, {}]
    assert not torch.equal(task.teacher.model.itc_text.weight, task.model.itc_text.weight)
    assert (task.teacher.model.itc_text.weight - 0.125).abs().max() < 0.1


def test_each_terms_gradient_on_the_towers_is_logged(monkeypatch):
    task, logged = cross_modal({"itc": ContrastiveLoss(0.5), "itm": MatchingLoss(2.0)}), []
    monkeypatch.setattr(type(task), "logs_this_step", True)
    monkeypatch.setattr(task, "log_figures", logged.append)
    loss = task.training_step(BATCHES[0], 0)
    loss.backward()
    trunk = [
        p for n, p in task.model.named_parameters() if n.split(".")[0] in ("patch_encoder", "vision", "text_encoder")
    ]
    for name, term in task.terms.items():
        alone = cross_modal({name: type(term)(term.weight)})
        value, _ = alone(BATCHES[0], lambda n, stream=0: _uniform(n))
        grads = torch.autograd.grad(
            value,
            [
                p
                for n, p in alone.model.named_parameters()
                if n.split(".")[0] in ("patch_encoder", "vision", "text_encoder")
            ],
        )
        expected = torch.cat([g.flatten() for g in grads]).norm().item()
        assert logged[0][f"{name}/gradient"].item() == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is not None for p in trunk)


@pytest.mark.parametrize("term", [ContrastiveLoss, SigmoidLoss])
def test_in_half_precision_a_loss_in_tiles_logs_the_gradient_that_it_trains_by(term, monkeypatch):
    task, logged = cross_modal({"term": term(tile=3)}), []
    monkeypatch.setattr(type(task), "logs_this_step", True)
    monkeypatch.setattr(task, "log_figures", logged.append)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = task.training_step(BATCHES[0], 0)
    loss.backward()
    towers = ("patch_encoder", "vision", "text_encoder")
    trunk = [p for n, p in task.model.named_parameters() if n.split(".")[0] in towers]
    trained = torch.cat([p.grad.flatten() for p in trunk]).norm()
    assert logged[0]["term/gradient"].item() == pytest.approx(trained.item(), rel=1e-5)


def test_frozen_towers_have_no_gradient_to_log(monkeypatch):
    task, logged = cross_modal({"itm": MatchingLoss()}), []
    monkeypatch.setattr(type(task), "logs_this_step", True)
    monkeypatch.setattr(task, "log_figures", logged.append)
    for tower in (task.model.patch_encoder, task.model.vision, task.model.text_encoder):
        tower.requires_grad_(False)
    task.training_step(BATCHES[0], 0).backward()
    assert logged[0]["itm/gradient"] == 0 and all(p.grad is not None for p in task.model.itm.parameters())


def _uniform(n: int) -> torch.Tensor:
    """What the task draws in its first step."""
    import numpy as np

    seed = np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]
    return torch.rand(n, generator=torch.Generator().manual_seed(int(seed)))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"mlm": MaskedLanguageLoss()}, "objective.mlm needs itm or relation beside it"),
        (
            {"itc": ContrastiveLoss(), "adversarial": AdversarialLoss()},
            "objective.adversarial needs itm beside it",
        ),
        (
            {"itm": MatchingLoss(), "distill": DistillationLoss()},
            "objective.distill needs itc or sigmoid beside it",
        ),
    ],
)
def test_a_term_that_stands_alone_is_refused(terms, message):
    with pytest.raises(UserError, match=message):
        cross_modal(terms)

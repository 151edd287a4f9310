import pytest
import torch
from torch import nn

from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import DistillationLoss
from crossvit.tasks.teacher import MomentumTeacher
from tests.small import cross_modal, pairs


def network() -> nn.Module:
    """With running statistics (floats and a count) and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_it_starts_as_an_exact_copy_of_its_own():
    model = network()
    teacher = MomentumTeacher(model)
    for name, value in model.state_dict().items():
        assert torch.equal(teacher.model.state_dict()[name], value)
    model[0].weight.data.fill_(7.0)
    model[1].running_mean.fill_(7.0)
    assert not (teacher.model[0].weight == 7).any()
    assert not (teacher.model[1].running_mean == 7).any()


def test_weights_by_hand_and_buffers_copied():
    model = network()
    teacher = MomentumTeacher(model, momentum=0.9)
    teacher.model[0].weight.data.fill_(1.0)
    model[0].weight.data.fill_(2.0)
    for step, expected in enumerate((1.1, 1.19, 1.271)):  # .9 x 1 + .1 x 2, ...
        model[1].running_mean.fill_(step + 5.0)
        model[1].num_batches_tracked.fill_(step + 3)
        teacher.follow(model)
        assert teacher.model[0].weight.unique().tolist() == pytest.approx([expected])
        assert (teacher.model[1].running_mean == step + 5.0).all()
        assert teacher.model[1].num_batches_tracked == step + 3


def test_momentum_zero_is_an_exact_copy():
    model = network()
    for teacher, arguments in ((MomentumTeacher(model, 0.99), {"momentum": 0.0}), (MomentumTeacher(model, 0.0), {})):
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 1e-3 + 1e3
        teacher.follow(model, **arguments)
        for mine, theirs in zip(teacher.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine is not theirs


def test_it_answers_as_its_student_does_in_evaluation():
    """Without the running statistics it would not, even with the same weights."""
    model = network().train()
    teacher = MomentumTeacher(model, momentum=0.0)
    for seed in range(20):
        model(3 + 2 * torch.randn(16, 3, generator=torch.Generator().manual_seed(seed)))
    teacher.follow(model)
    x = torch.randn(5, 3)
    assert torch.equal(teacher.model(x), model.eval()(x))


def test_always_in_evaluation_mode():
    teacher = MomentumTeacher(network())
    assert not any(module.training for module in teacher.modules())
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert teacher.train() is teacher
    x = torch.randn(8, 3)
    before = teacher.model[1].running_mean.clone()
    assert torch.equal(teacher.model(x), teacher.model(x))  # no dropout
    assert torch.equal(teacher.model[1].running_mean, before)


def test_nothing_of_it_is_trained():
    model = network()
    teacher = MomentumTeacher(model)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    teacher.follow(model)
    assert not any(p.requires_grad or p.grad_fn for p in teacher.parameters())


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_a_momentum_that_is_none_is_refused(momentum):
    with pytest.raises(ValueError, match=r"teacher momentum must lie in \[0, 1\), got"):
        MomentumTeacher(network(), momentum)


class TestInTheTask:
    def test_only_where_a_term_asks_for_it(self):
        assert cross_modal(["itc", "itm"]).teacher is None
        assert cross_modal(["itc", "distill"]).teacher is not None
        assert cross_modal({"itc": ContrastiveLoss(queue_size=8)}).teacher is not None
        assert cross_modal({"itc": ContrastiveLoss(), "distill": DistillationLoss(0.0)}).teacher is None
        assert cross_modal(["itc", "distill"], teacher_momentum=0.75).teacher.momentum == 0.75

    def test_it_is_not_in_the_optimiser_and_not_handed_on(self):
        task = cross_modal(["itc", "distill"])
        optimised = {id(p) for g in task.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
        assert not optimised & {id(p) for p in task.teacher.parameters()}
        assert set(task.export()) == set(task.model.state_dict())
        assert any(name.startswith("teacher.") for name in task.state_dict())  # but a checkpoint holds it

    def test_the_first_step_is_taken_from_what_the_stage_starts_from(self):
        task = cross_modal(["itc", "distill"])
        task.model.itc_text.weight.data.fill_(0.125)  # what a parent stage hands over, after the task was built
        task.setup("validate")
        assert not torch.equal(task.teacher.model.itc_text.weight, task.model.itc_text.weight)
        task.setup("fit")
        assert torch.equal(task.teacher.model.itc_text.weight, task.model.itc_text.weight)

    def test_it_is_run_when_asked_for_and_then_once(self):
        task = cross_modal(["itc", "distill"])
        seen = []
        task.teacher.model.patch_encoder.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        state = task.state(pairs(range(3)))
        assert seen == []
        assert state.teacher is state.teacher
        assert seen == [False]
        assert not state.teacher.image_embedding.requires_grad
        assert not state.teacher.text_embedding.requires_grad

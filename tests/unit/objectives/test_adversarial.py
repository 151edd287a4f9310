"""The adversarial term: its algorithms against naive ones, on a small model and on answers that are known."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from crossvit.models.patch_encoder import PatchEncoder
from crossvit.objectives.adversarial import ATTACKED, AdversarialLoss
from crossvit.objectives.answers import Answers, answers
from crossvit.objectives.attack import PROBE, Attack, Ball
from crossvit.objectives.gradients import KnownGradient
from crossvit.objectives.imitation import divergence
from crossvit.objectives.matching import MatchingLoss, draw_negatives, match
from crossvit.objectives.term import Perturbation
from crossvit.tasks.pair_state import pair_state
from tests.losses import hand_state
from tests.small import TERMS, cross_vit, pairs, uniform

BATCH = pairs([0, 1, 2, 3, 3], negatives=1, without_negatives=[2])
LABELLED = {
    "itm": BATCH,
    "itc": BATCH,
    "relation": pairs(range(5), label=[0, 1, 1, 0, 1]),
    "two_image": pairs(range(5), label=[0, 1, 1, 0, 1], two_images=True),
}
SPACES = ("text", "patch")


def state(model=None, batch=BATCH, teacher=None, **fields):
    found = pair_state(model or cross_vit(), batch, uniform(), teacher)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for name, grad in mine.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-6, msg=name)


def rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))


def naive(found, steps: int, ball: Ball, kl_weight: float = 0.0, detach: bool = True, only_last: bool = False):
    """FreeLB and VILLA written out: all K losses in one graph, the mean of them (or the loss at the last point)."""
    inputs = {"text": found.inputs.text, "patch": found.inputs.patch}
    inputs["text"] = inputs["text"] * found.text_mask[..., None]
    radius = {name: ball.eps * rows(x.detach()) for name, x in inputs.items()}
    step = {name: ball.step_size * rows(x.detach()) for name, x in inputs.items()}
    delta = {name: torch.zeros_like(x.detach()) for name, x in inputs.items()}
    clean = match(found, True, True).logits
    clean = clean.detach() if detach else clean
    losses = []
    for _ in range(steps):
        delta = {name: d.detach().requires_grad_() for name, d in delta.items()}
        attacked = found.perturb(Perturbation(**delta), False)
        loss = MatchingLoss()(attacked).loss
        if kl_weight:
            matching = match(attacked, True, True)
            both = divergence(clean, matching.logits) + divergence(matching.logits, clean)
            loss = loss + kl_weight * both[matching.pairs.counted].mean()
        losses.append(loss)
        for name, grad in zip(delta, torch.autograd.grad(loss, delta.values(), retain_graph=True), strict=True):
            moved = delta[name].detach() + step[name] * grad / rows(grad)
            delta[name] = moved * (radius[name] / rows(moved)).clamp(max=1)
    if only_last:
        return MatchingLoss()(found.perturb(Perturbation(**delta), False)).loss
    return torch.stack(losses).mean()


class TestAgainstNaiveComputation:
    ball = Ball("l2", 0.1, 0.05, True)

    def check(self, term: AdversarialLoss, **settings) -> None:
        model, other = cross_vit(), cross_vit()
        mine = term(state(model)).loss
        theirs = naive(state(other), term.steps, self.ball, **settings)
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
        (0.7 * mine).backward()  # the weight of the term reaches the gradients that were known before it
        (0.7 * theirs).backward()
        same(gradients(model), gradients(other))

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_pgd_trains_on_the_last_point(self, steps):
        self.check(AdversarialLoss(eps=0.1, step_size=0.05, steps=steps), only_last=True)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_freelb_trains_on_the_mean_of_all_points(self, steps):
        self.check(AdversarialLoss(algorithm="freelb", eps=0.1, step_size=0.05, steps=steps))

    @pytest.mark.parametrize("detach", [True, False])
    def test_villa_adds_the_symmetric_divergence(self, detach):
        term = AdversarialLoss(algorithm="villa", eps=0.1, step_size=0.05, steps=3, kl_weight=1.5, kl_detach=detach)
        self.check(term, kl_weight=1.5, detach=detach)

    def test_villa_without_weight_is_freelb(self):
        villa, freelb = (
            AdversarialLoss(algorithm=a, steps=2, kl_weight=0.0)(state()).loss for a in ("villa", "freelb")
        )
        assert villa == freelb

    def test_the_divergence_is_of_villa_alone(self):
        for algorithm in ("pgd", "freelb"):
            term = partial(AdversarialLoss, algorithm=algorithm, steps=2)
            assert term(kl_weight=9.0)(state()).loss == term()(state()).loss

    def test_only_what_is_trained_gets_a_gradient(self):
        model = cross_vit()
        frozen = list(model.text_encoder.parameters())
        for parameter in frozen:
            parameter.requires_grad_(False)
        AdversarialLoss(algorithm="freelb", steps=2)(state(model)).loss.backward()
        assert all(p.grad is None for p in frozen)
        assert model.itm.weight.grad.abs().sum() > 0
        assert model.relation[0].weight.grad is None  # has no part in it

    def test_nothing_is_trained_in_evaluation(self):
        model = cross_vit()
        found = state(model, parameters=[])
        assert AdversarialLoss(algorithm="freelb", steps=2)(found).loss > 0

    def test_a_known_gradient_by_hand(self):
        x = torch.tensor([1.0, 2.0], requires_grad=True)
        y = torch.tensor(5.0, requires_grad=True)
        value = KnownGradient.apply(torch.tensor(7.0), [torch.tensor([10.0, 20.0]), torch.tensor(3.0)], x, y)
        assert value == 7
        (2 * value).backward()
        assert x.grad.tolist() == [20, 40]
        assert y.grad == 6


class TestHarm:
    @pytest.mark.parametrize("spaces", [["text"], ["patch"], ["pixel"], ["text", "patch", "pixel"]])
    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_loss_under_attack_is_greater(self, norm, spaces):
        model = cross_vit()
        clean = MatchingLoss()(state(model)).loss
        out = AdversarialLoss(norm=norm, spaces=spaces, eps=0.1, step_size=0.05, steps=3)(state(model))
        assert out.loss > clean
        for space in spaces:
            assert out.figures[f"{space}_norm"] > 0
            if norm == "l2":
                assert out.figures[f"{space}_share"] <= 0.1 + 1e-5

    @pytest.mark.parametrize("attack", ATTACKED)
    def test_of_each_term(self, attack):
        model, batch = cross_vit(), LABELLED[attack]
        clean = TERMS[attack](**({"generated_negatives": False} if attack == "itc" else {}))(state(model, batch)).loss
        for algorithm in ("pgd", "freelb", "villa"):
            out = AdversarialLoss(algorithm=algorithm, attack=attack, eps=0.1, step_size=0.05, steps=3)
            assert out(state(model, batch)).loss > clean

    def test_it_grows_with_steps_and_radius(self):
        model = cross_vit()
        by_steps = [AdversarialLoss(step_size=0.03, steps=k)(state(model)).loss.item() for k in (1, 2, 3)]
        assert by_steps == sorted(by_steps)
        by_eps = [AdversarialLoss(eps=e, step_size=e)(state(model)).loss.item() for e in (0.01, 0.05, 0.2)]
        assert by_eps == sorted(by_eps)

    def test_gradient_beats_random_and_random_beats_nothing_by_little(self):
        model = cross_vit()
        loss = {way: AdversarialLoss(direction=way)(state(model)).loss.item() for way in ("gradient", "random", "none")}
        clean = MatchingLoss()(state(model)).loss.item()
        assert loss["none"] == pytest.approx(clean, rel=1e-6)
        assert loss["gradient"] - clean > 3 * abs(loss["random"] - clean)


class TestControls:
    def test_random_steps_have_the_length_of_gradient_steps(self):
        found = {
            way: AdversarialLoss(direction=way, eps=0.1, step_size=0.07)(state()).figures
            for way in ("gradient", "random")
        }
        for space in SPACES:
            for figure in (f"{space}_norm", f"{space}_share"):
                assert found["random"][figure].item() == pytest.approx(found["gradient"][figure].item(), rel=1e-5)
            assert found["random"][f"{space}_share"].item() == pytest.approx(0.07, rel=1e-5)
            assert f"{space}_fosc" in found["gradient"]
            assert f"{space}_fosc" not in found["random"]  # nobody looked at a gradient

    @pytest.mark.parametrize("algorithm", ["pgd", "freelb"])
    def test_each_random_step_goes_elsewhere(self, algorithm):
        moved = {}
        for steps in (1, 2, 3):
            term = AdversarialLoss(algorithm=algorithm, direction="random", eps=None, step_size=0.1, steps=steps)
            moved[steps] = term(state()).figures["patch_share"].item()
        last = [moved[k] for k in ((1, 2, 3) if algorithm == "pgd" else (2, 3))]
        assert last[0] == pytest.approx(0.1, rel=1e-5)
        # in 256 dimensions independent steps are at right angles: lengths grow by the square root
        for number, length in enumerate(last, 1):
            assert length == pytest.approx(0.1 * math.sqrt(number), rel=0.1)

    @pytest.mark.parametrize("algorithm", ["pgd", "freelb"])
    def test_random_steps_go_where_the_noise_points(self, algorithm):
        term = AdversarialLoss(algorithm=algorithm, direction="random", eps=None, steps=2)
        seen, found = [], state()
        found.perturb = lambda added, through, perturb=found.perturb: seen.append(added) or perturb(added, through)
        term(found)
        expected = term.on(state())
        for step in range(2 if algorithm == "pgd" else 1):
            expected.move(expected.noise(step))
        for space in SPACES:
            torch.testing.assert_close(getattr(seen[-1], space), expected.delta[space])

    @pytest.mark.parametrize("algorithm", ["pgd", "freelb", "villa", "vat"])
    def test_none_leaves_the_inputs_where_init_puts_them(self, algorithm):
        for init in ("zero", "uniform"):
            term = AdversarialLoss(algorithm=algorithm, direction="none", init=init, steps=2)
            attack = term.on(state())
            start = dict(attack.delta)
            term.climb(attack)
            assert all(torch.equal(attack.delta[name], start[name]) for name in start)
            assert all(bool(delta.any()) == (init == "uniform") for delta in start.values())
            figures = term(state()).figures
            assert figures["patch_norm"].item() == pytest.approx(start["patch"].flatten(1).norm(dim=1).mean().item())

    @pytest.mark.parametrize(
        "settings, expected",
        [
            ({"steps": 1}, 1),  # the clean pass has told the first step where to go
            ({"steps": 3}, 3),
            ({"steps": 1, "init": "uniform"}, 2),
            ({"steps": 1, "direction": "random"}, 1),
            ({"steps": 1, "spaces": ["text", "pixel"]}, 2),
            ({"algorithm": "freelb", "steps": 1}, 1),
            ({"algorithm": "freelb", "steps": 3}, 3),
            ({"algorithm": "vat", "steps": 2}, 3),
        ],
    )
    def test_how_many_passes_k_steps_take(self, settings, expected):
        calls, found = [], state()
        found.perturb = lambda *args, perturb=found.perturb: calls.append(1) or perturb(*args)
        AdversarialLoss(**settings)(found)
        assert len(calls) == expected

    def test_the_clean_pass_tells_the_first_gradient(self):
        for attacked in ("itm", "itc"):
            attack = AdversarialLoss(attack=attacked).on(state())
            told, figures = attack.clean_gradient(), attack.figures()
            attack.watch()
            found = attack.gradient(attack.loss()).inputs
            assert found["text"].any() and found["patch"].any()
            for name, grad in found.items():
                assert torch.allclose(told[name], grad, atol=1e-6)
                assert not told["text"][~attack.state.text_mask].any()
            for key, value in attack.figures().items():
                assert torch.allclose(figures[key], value, rtol=1e-3), key
            attack.clean[0].loss().backward()  # and its graph is still there

    def test_where_the_clean_pass_cannot_tell(self):
        frozen = cross_vit()
        frozen.patch_encoder.requires_grad_(False)
        assert AdversarialLoss().on(state(frozen)).clean_gradient() is None
        assert AdversarialLoss(spaces=["text"]).on(state(frozen)).clean_gradient() is not None
        assert AdversarialLoss(spaces=["pixel"]).on(state()).clean_gradient() is None
        assert AdversarialLoss().on(state(TestWhatStaysAsItIs.dropping())).clean_gradient() is None

    def test_starts_of_the_ascent(self):
        clean = MatchingLoss()(state()).loss.item()
        zero, some = (
            AdversarialLoss(algorithm="freelb", init=init)(state()).loss.item() for init in ("zero", "uniform")
        )
        assert zero == pytest.approx(clean, rel=1e-6)  # one step of freelb trains on the start alone
        assert some != pytest.approx(clean, rel=1e-6)


class TestVirtual:
    def test_it_finds_the_direction_in_which_the_answer_changes_most(self):
        """Close to the clean input the divergence is quadratic: the top eigenvector of its Hessian is the worst direction."""
        torch.manual_seed(0)
        weight, base = torch.randn(6, 4), torch.randn(1, 6)
        words = torch.randn(1, 2, 2)

        def ask(found):
            logits = base + (weight @ found.inputs.text.flatten(1).t()).t()
            return [Answers(logits, torch.tensor([[1.0, 0, 0, 0, 0, 0]]), torch.tensor([True]))]

        found = hand_state(
            torch.eye(2)[:1],
            torch.eye(2)[:1],
            text_mask=torch.ones(1, 2, dtype=torch.bool),
            inputs=Perturbation(text=words),
            uniform=uniform(),
        )
        seen = []

        def perturb(added, through):
            seen.append(added.text.detach().norm().item())
            return replace(found, inputs=Perturbation(text=words + added.text))

        found.perturb = perturb
        clean = ask(found)[0].logits

        def change(delta):
            return divergence(clean, ask(found.perturb(Perturbation(text=delta.view_as(words)), False))[0].logits).sum()

        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(change, torch.zeros(4)))
        assert values[-1] > 1.5 * values[-2]
        term = AdversarialLoss(algorithm="vat", spaces=["text"], eps=0.05, relative=False, steps=12)
        attack = Attack(found, ask, ["text"], term.ball, [torch.softmax(clean, 1)])
        seen.clear()
        term.climb(attack)
        assert seen == pytest.approx([PROBE * 0.05] * 12)  # close by, and at the radius only in the end
        delta = attack.delta["text"].flatten()
        assert delta.norm().item() == pytest.approx(0.05, rel=1e-5)
        assert abs(delta @ vectors[:, -1]).item() == pytest.approx(0.05, rel=2e-2)
        assert change(delta).item() == pytest.approx(0.5 * 0.05**2 * values[-1].item(), rel=0.1)

    def test_it_changes_the_answer_more_than_a_random_direction_does(self):
        model = cross_vit()
        found = {}
        for way in ("gradient", "random"):
            term = AdversarialLoss(algorithm="vat", direction=way, eps=0.1, steps=2)
            attack = term.on(state(model))
            term.climb(attack)
            change = divergence(attack.clean[0].logits, attack.answers()[0].logits)
            found[way] = change[attack.clean[0].counted].mean().item()
            for name, delta in attack.delta.items():
                share = rows(delta) / rows(
                    getattr(attack.state.inputs, name) * (BATCH.token_mask[..., None] if name == "text" else 1)
                )
                torch.testing.assert_close(share, torch.full_like(share, 0.1))
        assert found["gradient"] > 3 * found["random"]

    def test_it_has_no_use_for_a_label(self):
        for target in ("label", "pseudo"):
            assert AdversarialLoss(algorithm="vat", target=target).target == "pseudo"
        batch = LABELLED["relation"]
        losses = [
            AdversarialLoss(algorithm="vat", attack="relation")(state(batch=batch._replace(label=label))).loss
            for label in (batch.label, 1 - batch.label)
        ]
        assert losses[0] == losses[1]


class TestTargets:
    def test_its_own_clean_answer(self):
        found = state()
        term = AdversarialLoss(target="pseudo", init="uniform")
        clean = match(found, True, True).logits
        target = torch.softmax(clean, 1)
        torch.testing.assert_close(term.on(found).target, [target])
        assert not term.on(found).target[0].requires_grad
        attacked = term.on(found)
        term.climb(attacked)
        logits = attacked.answers()[0].logits
        counted = match(found, True, True).pairs.counted
        expected = -(target * torch.log_softmax(logits, 1)).sum(1)[counted].mean()
        assert term(state()).loss.item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize("attack", ["itm", "itc"])
    def test_the_teachers_answer(self, attack):
        model, teacher = cross_vit(), cross_vit(seed=1)
        found = state(model, teacher=teacher)
        term = AdversarialLoss(target="teacher", attack=attack)
        asked = answers(found.teacher, attack, True, attack == "itm")
        torch.testing.assert_close(term.on(found).target, [torch.softmax(a.logits, 1) for a in asked])
        assert term.needs_teacher
        term(found).loss.backward()
        assert all(p.grad is None for p in teacher.parameters())

    def test_the_label_needs_neither(self):
        assert AdversarialLoss().on(state()).target is None
        assert not AdversarialLoss().needs_teacher


class TestWhatStaysAsItIs:
    @staticmethod
    def dropping():
        model = cross_vit().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        return model

    def test_dropout_is_the_same_at_every_call(self):
        attack = AdversarialLoss().on(state(self.dropping()))
        first, second = (attack.answers()[0].logits for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.allclose(first, attack.clean[0].logits)  # of another pass: there is dropout

    def test_what_the_step_draws_afterwards_does_not_depend_on_the_number_of_steps(self):
        draws = []
        for steps in (1, 3):
            model = self.dropping()
            torch.manual_seed(5)
            AdversarialLoss(steps=steps)(state(model))
            draws.append(torch.rand(3))
        assert torch.equal(*draws)

    def test_negatives_are_drawn_once(self):
        calls, found = [], state()
        found.uniform = lambda n, stream=0: calls.append(stream) or uniform()(n, stream)
        term = AdversarialLoss(steps=3, step_size=0.5, eps=2.0)
        attack = term.on(found)
        before = draw_negatives(found)
        term.climb(attack)
        attack.loss()
        assert calls == [0]
        assert draw_negatives(found) is before

    @pytest.mark.parametrize("spaces", [["pixel"], ["text", "patch"]])
    @pytest.mark.parametrize("algorithm", ["pgd", "freelb"])
    def test_no_batchnorm_statistic_moves(self, spaces, algorithm):
        model = with_batchnorm().train()
        norm = model.patch_encoder.backbone[1]
        found = state(model)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        assert before["num_batches_tracked"] == 1  # the clean pass
        out = AdversarialLoss(spaces=spaces, algorithm=algorithm, steps=3)(found)
        out.loss.backward()
        for name, value in norm.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert norm.track_running_stats and norm.training

    def test_batchnorm_normalises_by_the_attacked_batch(self):
        """As in training: only the running statistics are left alone."""
        model = with_batchnorm().train()
        found = state(model)
        far = found.perturb(Perturbation(pixel=torch.full_like(BATCH.image, 50.0)), False)
        assert torch.allclose(far.visual, found.visual, atol=0.2)  # a shift of all pixels is normalised away inside
        evaluated = state(model.eval())
        far = evaluated.perturb(Perturbation(pixel=torch.full_like(BATCH.image, 50.0)), False)
        assert not torch.allclose(far.visual, evaluated.visual, atol=0.2)
        assert not model.patch_encoder.backbone[1].training


class Backbone(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 8, stride=8, bias=False), nn.BatchNorm2d(8))
        self.num_channels, self.stride = 8, 8


def with_batchnorm():
    model = cross_vit()
    torch.manual_seed(3)
    model.patch_encoder = PatchEncoder(Backbone(), 16, (4, 4))
    return model


class TestThroughTheCnn:
    @staticmethod
    def cnn_gradient(**settings) -> float:
        model = cross_vit()
        AdversarialLoss(**settings)(state(model)).loss.backward()
        return sum(p.grad.abs().sum().item() for p in model.patch_encoder.parameters() if p.grad is not None)

    @pytest.mark.parametrize("algorithm", ["pgd", "freelb", "villa", "vat"])
    def test_attacked_patches_train_it_on_request_alone(self, algorithm):
        settings = {"algorithm": algorithm, "steps": 2, "spaces": ["text", "patch"]}
        assert self.cnn_gradient(**settings) == 0
        assert self.cnn_gradient(**settings, through_cnn=True) > 0

    def test_the_rest_of_the_model_is_trained(self):
        model = cross_vit()
        AdversarialLoss(steps=2)(state(model)).loss.backward()
        got = {name.split(".")[0] for name, grad in gradients(model).items() if grad.abs().sum() > 0}
        assert got == {"vision", "text_encoder", "fusion", "itm"}

    def test_the_value_is_the_same(self):
        losses = [AdversarialLoss(through_cnn=through)(state()).loss for through in (True, False)]
        assert losses[0] == losses[1]


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"algorithm": "fgsm"}, "algorithm='fgsm': choose pgd, freelb, villa, vat"),
            ({"attack": "mlm"}, "attack='mlm': choose itm, itc, relation, two_image"),
            ({"target": "hard"}, "target='hard': choose label, pseudo, teacher"),
            ({"norm": "l1"}, "norm='l1': choose l2, linf"),
            ({"init": "normal"}, "init='normal': choose zero, uniform"),
            ({"direction": "up"}, "direction='up': choose gradient, random, none"),
            ({"spaces": []}, r"spaces=\[\]: choose some of text, patch, pixel"),
            ({"spaces": ["text", "text"]}, "choose some of text, patch, pixel"),
            ({"spaces": ["text", "word"]}, "choose some of text, patch, pixel"),
            ({"steps": 0}, "steps=0, step_size=0.02, eps=0.02: give numbers greater than 0"),
            ({"step_size": 0.0}, "step_size=0.0"),
            ({"eps": 0.0}, "eps=0.0: give numbers greater than 0"),
            ({"algorithm": "vat", "eps": None}, "algorithm=vat needs eps"),
            ({"target": "pseudo"}, "set init=uniform or algorithm=vat"),
            ({"weight": -1.0}, "weight must be >= 0, got -1.0"),
            ({"kl_weight": -1.0}, "kl_weight=-1.0: give a number of at least 0"),
        ],
    )
    def test_values_that_make_no_attack_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AdversarialLoss(**settings)

    def test_what_is_allowed(self):
        AdversarialLoss(target="pseudo", init="uniform", eps=None)
        assert AdversarialLoss(algorithm="villa").kl_weight == 1.5  # as published
        AdversarialLoss(algorithm="vat", target="pseudo")
        AdversarialLoss(algorithm="freelb", eps=None, step_size=1e-3, steps=1)

    def test_what_it_needs(self):
        assert AdversarialLoss().needs_terms == (("itm",),)
        assert AdversarialLoss(attack="itc").needs_terms == (("itc", "sigmoid"),)
        assert AdversarialLoss(attack="relation").needs_terms == (("relation",),)
        for attack in ATTACKED:
            term = AdversarialLoss(attack=attack)
            assert term.modules_used == ATTACKED[attack]
            assert term.needs_label == (attack in ("relation", "two_image"))
            assert term.needs_two_images == (attack == "two_image")
            assert term.reads_negatives == (attack == "itm")
            assert term.reads_truth == (attack != "relation")
        assert not AdversarialLoss(generated_negatives=False).reads_negatives

    def test_which_pairs_are_attacked(self):
        sizes = {}
        for hard in (True, False):
            for generated in (True, False):
                term = AdversarialLoss(hard_negatives=hard, generated_negatives=generated)
                sizes[hard, generated] = len(term.on(state()).clean[0].logits)
        assert sizes == {(True, True): 20, (True, False): 15, (False, True): 10, (False, False): 5}

    def test_defaults_are_those_of_the_attack(self):
        term = AdversarialLoss(norm="linf", eps=0.3, step_size=0.2, relative=False, spaces=["pixel"])
        attack = term.on(state())
        assert attack.ball == Ball("linf", 0.3, 0.2, False)
        assert list(attack.delta) == ["pixel"]
        assert AdversarialLoss().on(state()).ball == Ball("l2", 0.02, 0.02, True)

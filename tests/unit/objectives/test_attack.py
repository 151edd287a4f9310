"""One attack, on functions whose maximum is known: the loss is linear in the inputs, or set by hand."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from crossvit.distributed import global_mean
from crossvit.objectives.answers import Answers
from crossvit.objectives.attack import PROBE, STREAM, Attack, Ball
from crossvit.objectives.term import Perturbation
from tests.distributed import run_distributed
from tests.losses import hand_state

WORDS = torch.tensor([[[3.0, 4.0], [7.0, 7.0]], [[1.0, 0.0], [0.0, 2.0]]])
MASK = torch.tensor([[True, False], [True, True]])  # the second word of row 0 is padding
PATCHES = torch.tensor([[[2.0, 0.0]], [[0.0, 5.0]]])
SLOPE = {
    "text": torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[0.0, 3.0], [4.0, 0.0]]]),
    "patch": torch.tensor([[[-6.0, 8.0]], [[1.0, 0.0]]]),
}
BOTH = ("text", "patch")


def numbers(n: int, stream: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(stream))


def toy(**fields):
    """A state whose inputs are WORDS and PATCHES."""
    state = hand_state(
        torch.eye(2),
        torch.eye(2),
        text_mask=MASK,
        inputs=Perturbation(WORDS, PATCHES, PATCHES[:, None]),
        uniform=numbers,
        **fields,
    )

    def perturb(added: Perturbation, through_cnn: bool = False):
        inputs = zip(state.inputs, added, strict=True)
        return replace(state, inputs=Perturbation(*(x if d is None else x + d for x, d in inputs)))

    state.perturb = perturb
    return state


def value(state, slope=SLOPE):
    """Answers whose loss is linear in the words and the patches, summed over rows."""
    total = (slope["text"] * state.inputs.text).sum() + (slope["patch"] * state.inputs.patch).sum()
    return [SimpleNamespace(loss=lambda target: total)]


def attack(spaces=BOTH, ask=value, state=None, **ball) -> Attack:
    settings = {"norm": "l2", "eps": 0.5, "step_size": 0.5, "relative": False}
    return Attack(state or toy(), ask, spaces, Ball(**settings | ball))


def climb(found: Attack, steps: int) -> Attack:
    for _ in range(steps):
        found.watch()
        found.move(found.gradient(found.loss()).inputs)
    return found


def flat(delta: torch.Tensor) -> torch.Tensor:
    return delta.flatten(1).norm(dim=1)


class TestAscent:
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_the_maximum_of_a_linear_function_is_reached_exactly(self, steps):
        found = climb(attack(), steps)
        # eps grad / |grad|; on the padding, where the slope is steepest, nothing
        text = torch.tensor([[[0.3, 0.4], [0, 0]], [[0, 0.3], [0.4, 0]]])
        patch = torch.tensor([[[-0.3, 0.4]], [[0.5, 0]]])
        torch.testing.assert_close(found.delta["text"], text)
        torch.testing.assert_close(found.delta["patch"], patch)
        gain = 0.5 * (5 + 5 + 10 + 1)
        assert found.loss().item() == pytest.approx(attack().loss().item() + gain, abs=1e-4)

    def test_a_box(self):
        found = climb(attack(norm="linf"), 2)
        torch.testing.assert_close(found.delta["text"], torch.tensor([[[0.5, 0.5], [0, 0]], [[0, 0.5], [0.5, 0]]]))
        torch.testing.assert_close(found.delta["patch"], torch.tensor([[[-0.5, 0.5]], [[0.5, 0]]]))

    def test_without_a_ball_steps_add_up(self):
        found = climb(attack(eps=None, step_size=0.5), 3)
        assert flat(found.delta["text"]).tolist() == pytest.approx([1.5, 1.5])

    def test_relative_steps_and_radii_are_shares_of_the_row(self):
        # |words| without padding: 5 and sqrt 5; |patches|: 2 and 5
        found = climb(attack(relative=True, eps=0.1, step_size=0.04), 2)
        assert flat(found.delta["text"]).tolist() == pytest.approx([0.4, 0.08 * math.sqrt(5)])
        assert flat(found.delta["patch"]).tolist() == pytest.approx([0.16, 0.4])
        assert flat(climb(found, 3).delta["text"]).tolist() == pytest.approx([0.5, 0.1 * math.sqrt(5)])
        larger = toy()
        larger.inputs = Perturbation(*(10 * x for x in larger.inputs))
        more = climb(attack(state=larger, relative=True, eps=0.1, step_size=0.04), 5)
        torch.testing.assert_close(more.delta["text"], 10 * found.delta["text"])

    def test_relative_to_the_elements_of_a_box(self):
        # root mean squares over the elements that are not 0: 5 / sqrt 2 and sqrt 5 / sqrt 2 of the words, 2 and 5 of the patches
        size = torch.tensor([5.0, math.sqrt(5)]) / math.sqrt(2)
        for steps, share in ((2, 0.08), (5, 0.1)):
            found = climb(attack(norm="linf", relative=True, eps=0.1, step_size=0.04), steps)
            torch.testing.assert_close(found.delta["text"].flatten(1).amax(1), share * size)
            torch.testing.assert_close(found.delta["patch"].flatten(1).amax(1), share * torch.tensor([2.0, 5.0]))

    def test_only_the_spaces_asked_for(self):
        found = climb(attack(["patch"]), 1)
        assert list(found.delta) == ["patch"]

    def test_a_space_without_a_part_in_the_loss_stays(self):
        found = climb(attack(ask=partial(value, slope=SLOPE | {"text": torch.zeros(())})), 2)
        assert not found.delta["text"].any()

        def patches_alone(state):
            return [SimpleNamespace(loss=lambda target: state.inputs.patch.sum())]

        found = climb(attack(ask=patches_alone), 2)
        assert not found.delta["text"].any()
        assert flat(found.delta["patch"]).tolist() == pytest.approx([0.5, 0.5])


class TestStart:
    def test_the_centre(self):
        assert not any(delta.any() for delta in attack().delta.values())

    def test_a_random_point_of_the_box(self):
        found = attack(norm="linf", eps=0.5)
        found.start_uniform()
        noise = found.noise(-1)
        for name, delta in found.delta.items():
            torch.testing.assert_close(delta, 0.5 * noise[name])
            assert 0 < delta.abs().max() <= 0.5
        assert not found.delta["text"][0, 1].any()

    def test_a_random_point_of_the_ball(self):
        """As FreeLB: each element at most eps / sqrt(number of elements that are not padding)."""
        found = attack(eps=0.6, relative=True)
        found.start_uniform()
        # elements other than 0: 2 and 2 of the words, 1 and 1 of the patches
        for name, size in (("text", [3.0 / math.sqrt(2), 0.6 * math.sqrt(5 / 2)]), ("patch", [1.2, 3.0])):
            expected = found.noise(-1)[name] * torch.tensor(size).view(2, 1, 1)
            torch.testing.assert_close(found.delta[name], expected)
        assert (flat(found.delta["text"]) <= 0.6 * torch.tensor([5, math.sqrt(5)])).all()

    def test_elements_that_are_0_do_not_count(self):
        state = replace(
            toy(), inputs=Perturbation(patch=torch.tensor([[[1.0, 2.0, 2.0, 0.0]], [[0.0, 0.0, 3.0, 0.0]]]))
        )
        found = attack(["patch"], lambda state: [], state, eps=0.6)
        found.start_uniform()
        size = 0.6 / torch.tensor([3.0, 1.0]).sqrt()
        torch.testing.assert_close(found.delta["patch"], found.noise(-1)["patch"] * size.view(2, 1, 1))

    def test_without_a_ball_the_step_is_its_size(self):
        found = attack(eps=None, norm="linf", step_size=0.2)
        found.start_uniform()
        torch.testing.assert_close(found.delta["patch"], 0.2 * found.noise(-1)["patch"])


class TestNoise:
    def test_range_and_padding(self):
        noise = attack().noise(0)
        assert list(noise) == list(BOTH)
        drawn = torch.cat([noise["text"][MASK].flatten(), noise["patch"].flatten()])
        assert drawn.min() >= -1 and drawn.max() < 1
        assert drawn.min() < -0.5 and drawn.max() > 0.5
        assert not noise["text"][0, 1].any()

    def test_each_step_and_space_draws_its_own(self):
        asked, state = [], toy()
        state.uniform = lambda n, stream: asked.append((n, stream)) or numbers(n, stream)
        found = attack(state=state)
        for step in (-1, 0, 1):
            found.noise(step)
        assert asked == [(n, STREAM + 10 * s + i) for s in (0, 1, 2) for i, n in enumerate((8, 4))]
        assert torch.equal(found.noise(1)["text"], found.noise(1)["text"])

    def test_by_hand(self):
        state = toy()
        state.uniform = lambda n, stream: torch.arange(n) / n
        assert attack(state=state).noise(0)["patch"].flatten().tolist() == [-1, -0.5, 0, 0.5]

    def test_as_many_words_as_there_are(self):
        long = replace(
            toy(), inputs=Perturbation(text=torch.ones(2, 5, 2)), text_mask=torch.ones(2, 5, dtype=torch.bool)
        )
        assert attack(["text"], lambda state: [], long).noise(0)["text"].shape == (2, 5, 2)

    def test_two_pictures_of_a_text_lie_side_by_side(self):
        state = replace(toy(), inputs=Perturbation(patch=torch.ones(4, 1, 2)))
        noise = attack(["patch"], lambda state: [], state).noise(0)["patch"]
        assert noise.shape == (4, 1, 2)
        assert torch.equal(noise.flatten(), 2 * numbers(8, STREAM + 10) - 1)


def test_a_point_at_a_share_of_the_radius():
    found = attack(eps=2.0)
    found.watch()
    slope = found.gradient(found.loss()).inputs
    found.place(slope, 0.25)
    torch.testing.assert_close(found.delta["text"][0], torch.tensor([[0.3, 0.4], [0, 0]]))
    found.place(slope)
    torch.testing.assert_close(found.delta["patch"], torch.tensor([[[-1.2, 1.6]], [[2.0, 0]]]))
    own = attack(eps=0.1, relative=True)
    own.place(slope)
    torch.testing.assert_close(own.delta["patch"], torch.tensor([[[-0.12, 0.16]], [[0.5, 0]]]))
    box = attack(norm="linf", eps=2.0)
    box.place(slope, 0.25)
    assert box.delta["patch"].tolist() == [[[-0.5, 0.5]], [[0.5, 0]]]
    assert 0 < PROBE < 1


class TestGradient:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    unused = torch.tensor(1.0, requires_grad=True)

    def ask(self, state):
        return [SimpleNamespace(loss=lambda target: (self.weight * state.inputs.patch).sum())]

    @pytest.mark.parametrize("scale", [1.0, 1024.0])
    def test_of_inputs_and_parameters(self, scale):
        found = attack(["patch"], self.ask, toy(loss_scale=scale))
        found.watch()
        grads = found.gradient(found.loss(), [self.weight, self.unused], share=0.25)
        torch.testing.assert_close(grads.inputs["patch"], self.weight.detach().expand(2, 1, 2))
        torch.testing.assert_close(grads.parameters[0], 0.25 * torch.tensor([2.0, 5.0]))
        assert grads.parameters[1] is None
        found.watch()
        (whole,) = found.gradient(found.loss(), [self.weight]).parameters
        torch.testing.assert_close(whole, torch.tensor([2.0, 5.0]))

    def test_the_loss_that_is_differentiated_is_scaled(self):
        """A gradient that fp16 would lose arrives whole."""
        seen = []
        found = attack(["patch"], self.ask, toy(loss_scale=1024.0))
        found.watch()
        loss = found.loss()
        loss.register_hook(lambda grad: seen.append(grad.item()))
        found.gradient(loss)
        assert seen == [1024.0]

    def test_a_pass_that_trains_nothing_keeps_no_graph(self):
        found = attack(["patch"], self.ask)
        found.watch()
        loss = found.loss() ** 2  # which saves its input
        found.gradient(loss)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        found.watch()
        loss = found.loss() ** 2
        found.gradient(loss, [self.weight])
        loss.backward()

    def test_watching_forgets_the_way_here(self):
        found = attack(["patch"], self.ask)
        found.watch()
        first = found.delta["patch"]
        found.watch()
        assert found.delta["patch"].is_leaf and found.delta["patch"] is not first


class TestLoss:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])

    def ask(self, state):
        """Two kinds of questions; only patches have a say."""
        target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        shifted = self.logits + state.inputs.patch[:, 0] - PATCHES[:, 0]
        return [
            Answers(shifted, target, torch.tensor([True, True]), 0.5),
            Answers(2 * shifted, target, torch.tensor([True, False])),
        ]

    def attack(self, **settings) -> Attack:
        state = toy()
        found = Attack(state, self.ask, ["patch"], Ball("l2", 9.0, 9.0, False), **settings)
        found.delta["patch"] = torch.tensor(
            [[[0.0, 1.0]], [[0.0, 0.0]]]
        )  # row 0 is less sure: logits (2, 1) and (4, 2)
        return found

    def test_against_the_labels(self):
        low = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))]
        expected = 0.5 * (low[0] + math.log(2)) / 2 + low[1]
        assert self.attack().loss().item() == pytest.approx(expected, abs=1e-6)

    def test_against_other_targets(self):
        target = [torch.tensor([[0.5, 0.5], [1, 0]]), torch.tensor([[0.0, 1.0], [1, 0]])]
        expected = 0.5 * (math.log(1 + math.exp(-1)) + 0.5 + math.log(2)) / 2 + math.log(1 + math.exp(-2)) + 2
        assert self.attack(target=target).loss().item() == pytest.approx(expected, abs=1e-6)
        with pytest.raises(ValueError, match="shorter"):
            self.attack(target=target[:1]).loss()

    def test_of_given_answers(self):
        found = self.attack()
        assert found.loss(found.clean) == sum(a.loss() for a in self.ask(toy()))

    def test_divergence_from_the_clean_answers(self):
        def symmetric(a: float, b: float) -> float:
            p, q = (torch.softmax(torch.tensor([x, 0.0]), 0) for x in (a, b))
            return ((p - q) * (p / q).log()).sum().item()

        # row 0's margins: clean 2 and 4, attacked 1 and 2; row 1 is unmoved, and not counted in the second kind
        extra = 1.5 * (0.5 * symmetric(2, 1) / 2 + symmetric(4, 2))
        assert self.attack(kl_weight=1.5).loss().item() == pytest.approx(self.attack().loss().item() + extra, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"kl_detach": True}, {"kl_detach": False}])
def test_whether_the_clean_answers_learn(settings):
    weight = torch.tensor(1.0, requires_grad=True)

    def ask(state):
        logits = (weight if state.inputs.patch is PATCHES else 1.0) * state.inputs.patch[:, 0]
        return [Answers(logits, torch.eye(2), torch.tensor([True, True]))]

    found = Attack(toy(), ask, ["patch"], Ball(), kl_weight=1.0, **settings)
    found.delta["patch"] = torch.ones_like(PATCHES).cumsum(2)
    loss = found.loss()
    assert loss.requires_grad == (settings.get("kl_detach") is False)


def test_dropout_stays_as_it_is_and_the_clean_pass_is_asked_once():
    asked = []

    def ask(state):
        kept = F.dropout(torch.ones(1000))
        asked.append(kept)
        return [SimpleNamespace(loss=lambda target: (kept * state.inputs.patch.sum()).mean())]

    torch.manual_seed(0)
    found = climb(attack(["patch"], ask), 3)
    found.loss()
    assert len(asked) == 1 + 4
    assert not torch.equal(asked[0], asked[1])
    assert all(torch.equal(asked[1], later) for later in asked[2:])


def test_whether_patches_lead_on_is_passed_on():
    seen, state = [], toy()
    perturb = state.perturb
    state.perturb = lambda added, through_cnn: seen.append(through_cnn) or perturb(added)
    for through in (True, False):
        Attack(state, value, BOTH, Ball(), through_cnn=through).answers()
    Attack(state, value, BOTH, Ball()).answers()
    assert seen == [True, False, False]


def _left_to_gain(rank: int, world_size: int) -> float:
    """By every `world_size`-th row, whose loss is part of a mean over all."""
    rows = slice(rank, None, world_size)
    ids, patches = torch.arange(2)[rows], PATCHES[rows]
    state = replace(toy(), image_id=ids, text_id=ids, visual=patches, inputs=Perturbation(patch=patches))
    state.perturb = lambda added, _: replace(state, inputs=Perturbation(patch=patches + added.patch))

    def ask(moved):
        values = (SLOPE["patch"][rows] * moved.inputs.patch).flatten(1).sum(dim=1)
        return [SimpleNamespace(loss=lambda target: global_mean(values, torch.ones_like(ids, dtype=torch.bool))[0])]

    return climb(attack(["patch"], ask, state), 1).figures()["patch_fosc"].item()


def test_what_is_left_to_gain_is_the_same_in_any_number_of_processes():
    # at the centre eps |slope| of the rows, 5 and 1/2
    assert _left_to_gain(0, 1) == pytest.approx(2.75)
    assert run_distributed(_left_to_gain, 2) == pytest.approx([5, 0.5])


class TestFigures:
    def test_by_hand(self):
        found = attack(relative=True, eps=0.4, step_size=0.2)
        found.watch()
        found.move(found.gradient(found.loss()).inputs)
        figures = found.figures()
        # steps of .2 |row|: 1 and .2 sqrt 5 of the words, .4 and 1 of the patches
        assert figures["text_norm"].item() == pytest.approx((1 + 0.2 * math.sqrt(5)) / 2)
        assert figures["patch_norm"].item() == pytest.approx(0.7)
        assert figures["text_share"].item() == figures["patch_share"].item() == pytest.approx(0.2)
        # where the ascent looked last, the centre, all could still be gained: radius x |grad of the summed loss|,
        # the loss being a mean over the two rows of the batch
        assert figures["text_fosc"].item() == pytest.approx(2 * (2 * 5 + 0.4 * math.sqrt(5) * 5) / 2, rel=1e-5)
        assert figures["patch_fosc"].item() == pytest.approx(2 * (0.8 * 10 + 2 * 1) / 2, rel=1e-5)

    def test_a_share_of_small_inputs(self):
        small = replace(toy(), inputs=Perturbation(patch=0.01 * PATCHES))
        found = attack(["patch"], lambda state: [], small, relative=True, eps=0.4)
        found.place({"patch": SLOPE["patch"]})
        assert found.figures()["patch_share"].item() == pytest.approx(0.4)

    def test_at_the_maximum_nothing_is_left_to_gain(self):
        found = climb(attack(), 2)
        assert found.figures()["text_fosc"].item() == pytest.approx(0, abs=1e-4)
        found = climb(attack(norm="linf"), 2)
        assert found.figures()["patch_fosc"].item() == pytest.approx(0, abs=1e-4)

    def test_without_a_gradient_or_a_ball_there_is_no_such_figure(self):
        assert set(attack().figures()) == {"text_norm", "text_share", "patch_norm", "patch_share"}
        assert "text_fosc" not in climb(attack(eps=None), 1).figures()

    def test_they_have_no_gradient(self):
        found = attack()
        found.watch()
        assert not any(figure.requires_grad for figure in found.figures().values())

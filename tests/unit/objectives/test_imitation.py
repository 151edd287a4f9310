import math
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from crossvit.config import config_directory
from crossvit.objectives.answers import Answers, answers, contrastive_answers
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import (
    NEVER,
    CrossDualLoss,
    CyclicLoss,
    DistillationLoss,
    MutualLearningLoss,
    choices,
    cyclic_loss,
    directions,
    divergence,
    entropy_of,
    mutual_divergence,
)
from crossvit.objectives.matching import draw_negatives, match
from crossvit.tasks.pair_state import pair_state
from tests.losses import gradient_is_right, hand_state, unit
from tests.small import cross_vit, pairs, uniform

THREE_QUARTERS = torch.tensor([[math.log(3.0), 0.0]])  # softmax (3/4, 1/4)
HALF = torch.zeros(1, 2)
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of (3/4, 1/4) from (1/2, 1/2)
KL_BACK = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)  # of (1/2, 1/2) from (3/4, 1/4)


class TestDivergence:
    def test_by_hand(self):
        assert divergence(THREE_QUARTERS, HALF).tolist() == pytest.approx([KL], abs=1e-6)
        assert divergence(HALF, THREE_QUARTERS).tolist() == pytest.approx([KL_BACK], abs=1e-6)
        assert divergence(THREE_QUARTERS, THREE_QUARTERS + 5).item() == pytest.approx(0, abs=1e-6)

    def test_the_gradient_of_both_sides_is_right(self):
        def formula(a, b):
            p = torch.softmax(a, 1)
            return (p * (p.log() - torch.log_softmax(b, 1))).sum(1)

        gradient_is_right(divergence, formula, [2 * unit(3, 4), unit(3, 4, seed=1)])

    def test_what_is_no_candidate_adds_nothing(self):
        a, b = (torch.cat([x, torch.full((1, 1), NEVER)], 1) for x in (THREE_QUARTERS, HALF))
        b.requires_grad_()
        found = divergence(a, b)
        assert found.tolist() == pytest.approx([KL], abs=1e-6)
        found.sum().backward()
        assert b.grad[0, 2] == 0
        nothing = torch.full((1, 3), NEVER)  # a row without any candidate
        assert divergence(nothing, nothing) == 0

    def test_entropy(self):
        assert entropy_of(torch.full((2, 5), 0.2)).tolist() == pytest.approx([math.log(5)] * 2, abs=1e-6)
        expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert entropy_of(torch.tensor([[0.75, 0.25, 0.0]])).tolist() == pytest.approx([expected], abs=1e-6)


class TestMutualDivergence:
    def test_by_hand(self):
        both = mutual_divergence(THREE_QUARTERS, HALF)
        assert both.tolist() == pytest.approx([(KL + KL_BACK) / 2], abs=1e-6)
        first = mutual_divergence(THREE_QUARTERS, HALF, second_learns=False)
        assert first.tolist() == pytest.approx([KL_BACK / 2], abs=1e-6)  # of the second from the first
        second = mutual_divergence(THREE_QUARTERS, HALF, first_learns=False)
        assert second.tolist() == pytest.approx([KL / 2], abs=1e-6)

    def test_temperature(self):
        # logits (2 log 3, 0) over T = 2 give (3/4, 1/4) again; T^2 = 4
        found = mutual_divergence(2 * THREE_QUARTERS, HALF, temperature=2.0)
        assert found.tolist() == pytest.approx([4 * (KL + KL_BACK) / 2], abs=1e-6)

    @pytest.mark.parametrize("first_learns", [True, False])
    @pytest.mark.parametrize("second_learns", [True, False])
    def test_who_learns(self, first_learns, second_learns):
        first, second = THREE_QUARTERS.clone().requires_grad_(), HALF.clone().requires_grad_()
        loss = mutual_divergence(first, second, 1.0, first_learns, second_learns)
        if not (first_learns or second_learns):
            assert loss.tolist() == [0]
            return
        loss.sum().backward()
        # d KL(p || q) / d logits of q = q - p, halved
        step = torch.tensor([[0.125, -0.125]])
        assert (first.grad is not None) == first_learns
        assert (second.grad is not None) == second_learns
        if first_learns:
            torch.testing.assert_close(first.grad, step)
        if second_learns:
            torch.testing.assert_close(second.grad, -step)

    def test_the_gradient_is_right(self):
        teacher = unit(3, 4, seed=1)

        def formula(x):
            p = torch.softmax(teacher.double() / 3, 1)
            return 9 / 2 * (p * (p.log() - torch.log_softmax(x / 3, 1))).sum(1)

        gradient_is_right(lambda x: mutual_divergence(x, teacher, 3.0, second_learns=False), formula, [unit(3, 4)])
        gradient_is_right(lambda x: mutual_divergence(teacher, x, 3.0, first_learns=False), formula, [unit(3, 4)])


@pytest.mark.parametrize("term", [MutualLearningLoss, CrossDualLoss])
def test_a_temperature_that_is_none_is_refused(term):
    with pytest.raises(ValueError, match="temperature=0: give a number greater than 0"):
        term(temperature=0)


class TestMutualLearning:
    def test_by_hand(self):
        # picture 0 and caption 0 agree, as do all others, but picture 0 is also as close to caption 1
        image, text = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.eye(2)
        state = hand_state(image, text, scale=math.log(3.0))
        # by image: (log 3, log 3), (0, log 3); by text: (log 3, 0), (log 3, log 3): one side (1/2, 1/2), the other 3:1
        assert MutualLearningLoss()(state).loss.item() == pytest.approx((KL + KL_BACK) / 2, abs=1e-6)

    def test_directions_read_captions_and_pictures(self):
        image, text = unit(3, 4), unit(3, 4, seed=1)
        by_image, by_text = directions(hand_state(image, text, 5.0))
        torch.testing.assert_close(by_image, 5 * image @ text.t())
        torch.testing.assert_close(by_text, 5 * text @ image.t())

    def test_false_pairs_are_neither_anchors_nor_columns(self):
        image, text = unit(4, 3), unit(4, 3, seed=1)
        label = torch.tensor([1, 0, 1, 1])
        state = hand_state(image, text, 4.0, label=label)
        true = label == 1
        without = hand_state(image[true], text[true], 4.0)
        assert MutualLearningLoss()(state).loss.item() == pytest.approx(MutualLearningLoss()(without).loss.item())
        for logits in directions(state):
            assert (logits[:, 1] == NEVER).all()

    @pytest.mark.parametrize("learner", ["images_learn", "texts_learn"])
    def test_one_way(self, learner):
        """Only the side that learns follows: its logits move as by the divergence from the other's, held fixed."""
        image, text = unit(3, 4).requires_grad_(), unit(3, 4, seed=1).requires_grad_()
        term = MutualLearningLoss(
            temperature=2.0, **{learner: True, ({"images_learn", "texts_learn"} - {learner}).pop(): False}
        )
        term(hand_state(image, text, 5.0)).loss.backward()
        a, b = (x.detach().requires_grad_() for x in (image, text))
        by_image, by_text = 5 * a @ b.t() / 2, 5 * b @ a.t() / 2
        learns, teaches = (by_image, by_text) if learner == "images_learn" else (by_text, by_image)
        p = torch.softmax(teaches.detach(), 1)
        (2 * (p * (p.log() - torch.log_softmax(learns, 1))).sum(1).mean()).backward()
        torch.testing.assert_close(image.grad, a.grad)
        torch.testing.assert_close(text.grad, b.grad)

    def test_somebody_has_to_learn(self):
        with pytest.raises(ValueError, match="images_learn and texts_learn are both false"):
            MutualLearningLoss(images_learn=False, texts_learn=False)


class TestCyclic:
    def test_by_hand(self):
        image, text = torch.eye(2), torch.tensor([[0.6, 0.8], [0.0, 1.0]])
        true = torch.tensor([True, True])
        cross, within = cyclic_loss(image, text, image, text, true)
        # v_0.t_1 = 0 against t_0.v_1 = .8; v_0.v_1 = 0 against t_0.t_1 = .8; the diagonal cancels
        assert cross.tolist() == pytest.approx([0.64, 0.64])
        assert within.tolist() == pytest.approx([0.64, 0.64])
        cross, within = cyclic_loss(image, text, image, text, torch.tensor([True, False]))
        assert cross.tolist() == within.tolist() == pytest.approx([0, 0.64])

    def test_the_gradient_is_right(self):
        inputs = [x.double().requires_grad_() for x in (unit(3, 4), unit(3, 4, seed=1))]
        true = torch.tensor([True, False, True])
        assert torch.autograd.gradcheck(lambda v, t: cyclic_loss(v, t, v, t, true), inputs)

    def test_it_is_the_published_normalisation(self):
        """Both published terms are means over all pairs times the batch size (at scale 1)."""
        image, text = unit(4, 3), unit(4, 3, seed=1)
        logits = image @ text.t()
        cross = (logits - logits.t()).square().mean() * 4
        within = (image @ image.t() - text @ text.t()).square().mean() * 4
        out = CyclicLoss(cross_modal=0.3, in_modal=0.7)(hand_state(image, text, 9.0))
        assert out.loss.item() == pytest.approx((0.3 * cross + 0.7 * within).item(), rel=1e-5)
        assert out.figures["cross"].item() == pytest.approx(cross.item(), rel=1e-5)
        assert out.figures["within"].item() == pytest.approx(within.item(), rel=1e-5)
        published = CyclicLoss()(hand_state(image, text)).loss
        assert published.item() == pytest.approx(0.25 * (cross + within).item(), rel=1e-5)

    def test_only_true_pairs_count(self):
        image, text = unit(4, 3), unit(4, 3, seed=1)
        label = torch.tensor([1, 1, 0, 1])
        with_it = CyclicLoss()(hand_state(image, text, label=label)).loss
        without = CyclicLoss()(hand_state(image[label == 1], text[label == 1])).loss
        assert with_it.item() == pytest.approx(without.item(), rel=1e-5)

    def test_shares_that_make_no_loss_are_refused(self):
        for cross, within in ((0, 0), (-1, 2), (2, -1)):
            with pytest.raises(ValueError, match="give shares >= 0, one of them > 0"):
                CyclicLoss(cross_modal=cross, in_modal=within)
        CyclicLoss(cross_modal=0, in_modal=1)
        CyclicLoss(cross_modal=1, in_modal=0)


class TestDistillation:
    @staticmethod
    def state(teacher_scale: float = 3.0, step: int = 0):
        image, text = unit(4, 3), unit(4, 3, seed=1)
        teacher = hand_state(unit(4, 3, seed=2), unit(4, 3, seed=3), teacher_scale)
        return hand_state(image.requires_grad_(), text.requires_grad_(), 5.0, make_teacher=lambda: teacher, step=step)

    def test_imitation_is_cross_entropy(self):
        mine = Answers(HALF.repeat(2, 1), None, torch.tensor([True, False]), share=0.5)
        target = torch.cat([THREE_QUARTERS, 9 * THREE_QUARTERS])
        assert mine.loss(target.softmax(dim=1)).item() == pytest.approx(0.5 * math.log(2), abs=1e-6)
        mine = mine._replace(logits=THREE_QUARTERS.repeat(2, 1))
        expected = 0.5 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
        assert mine.loss(target.softmax(dim=1)).item() == pytest.approx(expected, abs=1e-6)

    def test_with_the_hard_term_it_has_the_published_targets(self):
        """a x distillation + (1 - a) x contrastive = cross-entropy against a x teacher + (1 - a) x label, as in ALBEF."""
        state, a = self.state(), 0.4
        mixed = 0.0
        for mine, theirs in zip(contrastive_answers(state), contrastive_answers(state.teacher), strict=True):
            target = a * torch.softmax(theirs.logits, 1) + (1 - a) * torch.eye(4)
            mixed = mixed - (target * torch.log_softmax(mine.logits, 1)).sum(1).mean() / 2
        ours = a * DistillationLoss()(state).loss + (1 - a) * ContrastiveLoss()(state).loss
        assert ours.item() == pytest.approx(mixed.item(), rel=1e-5)

    def test_the_teacher_gets_no_gradient(self):
        state = self.state()
        state.teacher.image_embedding.requires_grad_()
        DistillationLoss()(state).loss.backward()
        assert state.teacher.image_embedding.grad is None
        assert state.teacher.logit_scale.grad is None
        assert state.image_embedding.grad.abs().sum() > 0
        assert state.text_embedding.grad.abs().sum() > 0

    def test_a_teacher_that_agrees_leaves_its_entropy_and_no_gradient(self):
        state = self.state()
        same = hand_state(state.image_embedding.detach(), state.text_embedding.detach(), 5.0)
        state.make_teacher = lambda: same
        out = DistillationLoss()(state)
        out.loss.backward()
        assert out.loss.item() == pytest.approx(out.figures["target_entropy"].item(), rel=1e-5)
        assert state.image_embedding.grad.abs().max() < 1e-6

    def test_the_logged_entropy_is_that_of_label_and_teacher_together(self):
        state = self.state()
        state.make_teacher = lambda: hand_state(
            *(torch.ones(4, 3) / 3**0.5 for _ in range(2)), 5.0
        )  # undecided among four
        for weight, right in ((1.0, 0.25), (0.4, 0.7), (2.0, 0.25)):
            other = (1 - right) / 3
            wanted = -(right * math.log(right) + 3 * other * math.log(other))
            found = DistillationLoss(weight)(state).figures["target_entropy"].item()
            assert found == pytest.approx(wanted, rel=1e-5)

    def test_one_row_that_counts_has_its_own_entropy(self):
        same, label = torch.ones(4, 3) / 3**0.5, torch.tensor([0, 1, 0, 0])
        teacher = hand_state(same, same, 5.0, label=label)
        state = hand_state(same, same, 5.0, label=label, make_teacher=lambda: teacher)
        assert DistillationLoss()(state).figures["target_entropy"].item() == pytest.approx(math.log(4))

    def test_the_weight_grows(self):
        full = DistillationLoss()(self.state()).loss
        for ramp, step, share in ((4, 0, 0.25), (4, 2, 0.75), (4, 3, 1.0), (4, 9, 1.0), (0, 0, 1.0), (1, 0, 1.0)):
            out = DistillationLoss(ramp=ramp)(self.state(step=step))
            assert out.loss.item() == pytest.approx(share * full.item(), rel=1e-6)
            assert out.figures["share"].item() == share

    def test_both_kinds_of_answers_weigh_the_same(self):
        student, teacher = cross_vit(), cross_vit(seed=1)
        batch = pairs(range(4), negatives=2)

        def loss(**settings):
            term = DistillationLoss(**settings)
            out = term(pair_state(student, batch, uniform(), teacher))
            return out.loss.item(), out.figures["target_entropy"].item()

        contrastive, matching, both = loss(), loss(contrastive=False, matching=True), loss(matching=True)
        assert both[0] == pytest.approx((contrastive[0] + matching[0]) / 2, rel=1e-5)
        # three tables of answers: two directions and the pairs
        assert both[1] == pytest.approx((2 * contrastive[1] + matching[1]) / 3, rel=1e-5)
        fewer = loss(contrastive=False, matching=True, generated_negatives=False)
        assert fewer[0] != pytest.approx(matching[0], rel=1e-4)
        given = loss(contrastive=False, matching=True, generated_negatives=False, hard_negatives=False)
        assert given[0] != pytest.approx(fewer[0], rel=1e-4)

    def test_matching_answers_are_of_the_students_pairs(self):
        state = pair_state(cross_vit(), pairs(range(5)), uniform(), cross_vit(seed=1))
        out = DistillationLoss(contrastive=False, matching=True)(state)
        ask = partial(answers, term="itm", hard_negatives=True, generated_negatives=False)
        (mine,), (theirs,) = ask(state), ask(state.teacher)
        target = torch.softmax(theirs.logits, 1)
        expected = -(target * torch.log_softmax(mine.logits, 1)).sum(1).mean()
        assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert torch.equal(draw_negatives(state).text, draw_negatives(state.teacher).text)

    def test_what_it_needs(self):
        assert DistillationLoss().needs_terms == (("itc", "sigmoid"),)
        assert DistillationLoss(matching=True).needs_terms == (("itc", "sigmoid"), ("itm",))
        alone = DistillationLoss(contrastive=False, matching=True)
        assert alone.needs_terms == (("itm",),) and "itc_text" not in alone.modules_used
        assert "fusion" not in DistillationLoss().modules_used
        assert {"fusion", "itm", "itc_image"} < set(DistillationLoss(matching=True).modules_used)
        assert DistillationLoss().needs_teacher
        assert not DistillationLoss().reads_negatives
        assert DistillationLoss(matching=True).reads_negatives
        assert not DistillationLoss(matching=True, generated_negatives=False).reads_negatives
        with pytest.raises(ValueError, match="contrastive and matching are both false"):
            DistillationLoss(contrastive=False)


class TestCrossDual:
    batch = pairs([0, 1, 2, 3, 3], negatives=2, without_negatives=[1], label=[1, 1, 0, 1, 1])

    def state(self, batch=None):
        return pair_state(cross_vit(), self.batch if batch is None else batch, uniform())

    def test_both_sides_speak_of_the_same_candidates(self):
        state = self.state()
        (for_images, for_texts) = choices(state, True, True)
        matching, scale = match(state, True, True), state.logit_scale.exp()
        drawn = draw_negatives(state)
        assert drawn.own.tolist() == [0, 1, 3, 4]

        def score(part, row):
            logits = matching.logits_of(part)[row]
            return (logits[1] - logits[0]).item()

        image, text, false = state.image_embedding, state.text_embedding, state.negative_embedding.view(5, 2, -1)
        for place, row in enumerate(drawn.own.tolist()):
            fused, dual, counted = (x[row] for x in for_images)
            captions = [text[row], text[drawn.text[place]], *false[row]]
            cosines = [(scale * image[row] @ caption).item() for caption in captions]
            scores = [score("given", row), score("by_text", place), *(score("generated", 2 * row + i) for i in (0, 1))]
            if row == 1:  # it has no generated captions
                cosines[2:], scores[2:] = [NEVER] * 2, [NEVER] * 2
            assert fused.tolist() == pytest.approx(scores, rel=1e-5)
            assert dual.tolist() == pytest.approx(cosines, rel=1e-4)
            assert counted
            fused, dual, counted = (x[row] for x in for_texts)
            assert fused.tolist() == pytest.approx([score("given", row), score("by_image", place)], rel=1e-5)
            pictures = [image[row], image[drawn.image[place]]]
            assert dual.tolist() == pytest.approx([(scale * text[row] @ x).item() for x in pictures], rel=1e-4)
            assert counted
        for fused, dual, counted in (for_images, for_texts):  # row 2 is a false pair and drew nothing
            assert not counted[2]
            assert fused[2, 1] == dual[2, 1] == NEVER

    def test_loss_is_the_mean_of_images_and_captions(self):
        term, state = CrossDualLoss(temperature=2.0), self.state()
        expected = 0.0
        for fused, dual, counted in choices(state, True, True):
            expected += mutual_divergence(fused, dual, 2.0)[counted].mean() / 2
        assert term(state).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert expected > 0
        plain = sum(
            mutual_divergence(fused, dual)[counted].mean() / 2 for fused, dual, counted in choices(state, True, True)
        )
        assert CrossDualLoss()(state).loss.item() == pytest.approx(plain.item(), rel=1e-5)

    def test_a_row_with_nothing_to_choose_from_is_left_out(self):
        # picture 0 knows every caption; generated captions are there for row 1 alone
        batch = pairs([0, 0, 0, 1], [0, 1, 2, 2], negatives=1, without_negatives=[0, 2])
        for_images, for_texts = choices(self.state(batch), True, True)
        assert for_images[2].tolist() == [False, True, False, True]
        assert for_texts[2].tolist() == [True, True, False, False]

    def test_one_kind_of_candidates(self):
        assert [fused.shape for fused, _, _ in choices(self.state(), True, False)] == [(5, 2), (5, 2)]
        assert [fused.shape for fused, _, _ in choices(self.state(), False, True)] == [(5, 3)]
        bare = self.state(self.batch._replace(negatives=None, negatives_mask=None))
        assert choices(bare, False, True) == []
        assert CrossDualLoss(hard_negatives=False)(bare).loss == 0

    @pytest.mark.parametrize("learns", ["towers", "fusion", "both"])
    def test_who_learns(self, learns):
        model = cross_vit()
        term = CrossDualLoss(towers_learn=learns != "fusion", fusion_learns=learns != "towers")
        term(pair_state(model, self.batch, uniform())).loss.backward()
        got = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        towers, fusion = {"itc_image", "itc_text", "logit_scale"}, {"fusion", "itm"}
        shared = {"patch_encoder", "vision", "text_encoder"}
        assert got == shared | {"towers": towers, "fusion": fusion, "both": towers | fusion}[learns]
        assert got == set(term.modules_used)

    def test_what_it_needs(self):
        assert CrossDualLoss().needs_terms == (("itc", "sigmoid"), ("itm",))
        assert "itc_text" not in CrossDualLoss(towers_learn=False).modules_used
        assert "fusion" not in CrossDualLoss(fusion_learns=False).modules_used
        assert CrossDualLoss().reads_negatives
        assert not CrossDualLoss(generated_negatives=False).reads_negatives
        with pytest.raises(ValueError, match="nobody would learn"):
            CrossDualLoss(towers_learn=False, fusion_learns=False)
        off = CrossDualLoss(weight=0, hard_negatives=False, generated_negatives=False)  # as the matching term has them
        assert not off.can_learn(labelled=True, generated=True)
        given = CrossDualLoss(hard_negatives=False)
        assert given.can_learn(labelled=False, generated=True) and not given.can_learn(labelled=True, generated=False)


def test_the_control_of_imitation_is_as_soft_as_its_comment_says():
    """Arm smoothing: a share s of the target on 96 candidates alike."""
    share = OmegaConf.load(config_directory() / "arm" / "smoothing.yaml").objective.itc.label_smoothing
    target = torch.full((1, 96), share / 96, dtype=torch.float64)
    target[0, 0] += 1 - share
    assert entropy_of(target).item() == pytest.approx(0.041, abs=5e-4)

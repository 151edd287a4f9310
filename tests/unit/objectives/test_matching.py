import math

import pytest
import torch

from crossvit.objectives.matching import (
    MatchingLoss,
    Pairs,
    draw_hard_negatives,
    draw_negatives,
    hard_pairs,
    match,
    matching_loss,
    matching_pairs,
)
from crossvit.tasks.pair_state import pair_state
from tests.losses import gradient_is_right, hand_state, unit
from tests.small import cross_vit, pairs, uniform


def test_loss_by_hand_leaves_out_what_is_not_counted():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [9.0, -9.0]])
    loss, count = matching_loss(logits, torch.tensor([1, 1, 1]), torch.tensor([True, True, False]))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert count == 2


def test_no_counted_pair_gives_zero_not_nan():
    loss, _ = matching_loss(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    assert loss == 0


def test_draw_follows_the_softmax_of_the_similarity():
    similarity = torch.tensor([[0.0, math.log(3.0), 5.0, math.log(6.0)]])
    allowed = torch.tensor([[True, True, False, True]])
    # cumulative shares of the allowed columns 0, 1, 3 are .1, .4, 1.0
    u = torch.tensor([0.05, 0.15, 0.39, 0.41, 0.99])
    index, drawn = draw_hard_negatives(similarity.expand(5, -1), allowed.expand(5, -1), u)
    assert index.tolist() == [0, 1, 1, 3, 3]
    assert drawn.all()


def test_what_is_not_allowed_is_never_drawn():
    torch.manual_seed(0)
    allowed = torch.rand(2000, 7) < 0.4
    similarity = 100 * torch.randn(2000, 7)  # shares that underflow included
    for u in (torch.zeros(2000), torch.rand(2000), torch.full((2000,), 1 - 2**-24)):
        index, drawn = draw_hard_negatives(similarity, allowed, u)
        assert (drawn == allowed.any(1)).all()
        assert allowed[torch.arange(2000), index][drawn].all()


def test_a_row_without_any_negative_is_skipped():
    index, drawn = draw_hard_negatives(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), torch.tensor([0.5]))
    assert not drawn.item()
    assert index.item() == 0


def test_negatives_drawn_at_random_do_not_look_at_the_likeness():
    state = pair_state(cross_vit(), pairs(range(8)), uniform())
    allowed = ~torch.eye(8, dtype=torch.bool)
    cosine = state.logit_scale.exp() * state.image_embedding @ state.text_embedding.t()
    for random, logits in ((True, torch.zeros(8, 8)), (False, cosine)):
        expected, _ = draw_hard_negatives(logits, allowed, state.uniform(16)[:8])
        assert torch.equal(draw_negatives(state, random).text, expected)
    hard, random = (MatchingLoss(hard_negatives=way)(state).loss for way in (True, "random"))
    assert hard != random


def test_the_gradient_is_right():
    label, counted = torch.tensor([1, 0, 1]), torch.tensor([True, True, False])
    gradient_is_right(
        lambda x: matching_loss(x, label, counted)[0],
        lambda x: -torch.log_softmax(x, 1)[torch.arange(2), label[:2]].mean(),
        [unit(3, 2)],
    )


class TestDraw:
    def test_towards_both_sides_with_numbers_of_their_own(self):
        """Row i's caption is drawn by number i and its picture by number B + i, from the scaled cosines."""
        image, text = torch.eye(3), torch.eye(3)[[1, 2, 0]]
        u = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.1, 0.9])
        state = hand_state(image, text, scale=50.0, uniform=lambda n: u[:n])
        drawn = draw_negatives(state)
        # picture 0 is that of caption 2's words, and so on: at scale 50 nothing else is drawn
        assert drawn.text.tolist() == [2, 0, 1]
        assert drawn.image.tolist() == [1, 2, 0]
        flat = draw_negatives(hand_state(image, text, scale=1e-6, uniform=lambda n: u[:n]))
        # without a preference the number decides between the two others
        assert flat.text.tolist() == [1, 2, 1]
        assert flat.image.tolist() == [2, 0, 1]
        assert draw_negatives(state) is drawn

    def test_at_random_all_are_as_likely(self):
        # picture 0 is close to caption 1 and far from 2; of two the number .6 takes the second
        image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
        numbers = []
        state = hand_state(image, text, uniform=lambda n: numbers.append(n) or torch.full((n,), 0.6))
        assert draw_negatives(state, random=True).text[0] == 2
        assert draw_negatives(state).text[0] == 1  # whose share is e / (e + 1 / e) = .88
        assert numbers == [6, 6]

    def test_false_pairs_draw_none(self):
        state = hand_state(torch.eye(3), torch.eye(3), uniform=uniform(), label=torch.tensor([0, 1, 1]))
        drawn = draw_negatives(state)
        assert drawn.own.tolist() == [1, 2]
        assert len(drawn.text) == len(drawn.image) == len(drawn.text_found) == len(drawn.image_found) == 2

    def test_a_row_that_finds_none_asks_for_its_own(self):
        one_picture = hand_state(torch.eye(3), torch.eye(3), uniform=uniform(), image_id=[7, 7, 7], text_id=[5, 5, 5])
        drawn = draw_negatives(one_picture)
        assert not drawn.text_found.any() and not drawn.image_found.any()
        assert drawn.text.tolist() == drawn.image.tolist() == [0, 1, 2]

    def test_it_has_no_gradient(self):
        image = unit(3, 4).requires_grad_()
        drawn = draw_negatives(hand_state(image, unit(3, 4, seed=1), uniform=uniform()))
        assert not any(column.requires_grad for column in drawn[:5])


class TestPairsOfAStep:
    """Pictures and captions of a small model, so that every row of the fused batch can be told."""

    batch = pairs([0, 1, 2, 3], negatives=2, without_negatives=[3], label=[1, 1, 0, 1])

    @pytest.fixture
    def state(self):
        with torch.no_grad():
            return pair_state(cross_vit().eval(), self.batch, uniform())

    def test_where_each_comes_from(self, state):
        parts = matching_pairs(state, True, True)
        drawn = draw_negatives(state)
        assert list(parts) == ["given", "by_text", "by_image", "generated"]
        given, by_text, by_image, generated = parts.values()
        assert torch.equal(given.visual, state.visual) and torch.equal(given.pooled, state.text_pooled)
        assert given.label.tolist() == [1, 1, 0, 1] and given.counted.all()
        assert torch.equal(by_text.visual, state.visual[[0, 1, 3]])
        assert torch.equal(by_text.pooled, state.text_pooled[drawn.text])
        assert torch.equal(by_text.tokens, state.text[drawn.text]) and torch.equal(
            by_text.mask, state.text_mask[drawn.text]
        )
        assert torch.equal(by_image.visual, state.visual[drawn.image])
        assert torch.equal(by_image.pooled, state.text_pooled[[0, 1, 3]])
        assert torch.equal(by_image.tokens, state.text[[0, 1, 3]])
        assert torch.equal(generated.visual, state.visual.repeat_interleave(2, dim=0))
        assert torch.equal(generated.tokens, state.negatives[0]) and torch.equal(generated.mask, state.negatives[2])
        assert generated.counted.tolist() == [True] * 6 + [False] * 2
        for part in (by_text, by_image, generated):
            assert not part.label.any()
        assert torch.equal(hard_pairs(state)["by_text"].pooled, by_text.pooled)  # by likeness, if nothing is said

    def test_what_the_towers_say_of_them(self, state):
        image, text, false = state.image_embedding, state.text_embedding, state.negative_embedding
        drawn, own = draw_negatives(state), [0, 1, 3]
        expected = {
            "given": (image * text).sum(1),
            "by_text": (image[own] * text[drawn.text]).sum(1),
            "by_image": (image[drawn.image] * text[own]).sum(1),
            "generated": (image.repeat_interleave(2, dim=0) * false).sum(1),
        }
        for name, part in matching_pairs(state, True, True).items():
            torch.testing.assert_close(part.cosine, expected[name])

    def test_scored_once_and_in_order(self, state):
        first = match(state, True, True)
        assert match(state, True, True) is first
        assert match(state, True, False) is not first
        for name, part in first.parts.items():
            alone = state.match_logits(state.fuse(part.visual, part.tokens, part.pooled, part.mask))
            torch.testing.assert_close(first.logits_of(name), alone, rtol=1e-4, atol=1e-5)

    def test_rows_without_a_negative_are_skipped_and_counted(self):
        # picture 0 knows captions 0 and 1, and caption 1 also picture 1: only caption 0 and picture 1 draw one
        state = pair_state(cross_vit(), pairs([0, 0, 1], [0, 1, 1]), uniform())
        out = MatchingLoss()(state)
        assert out.figures["skipped"] == 2 + 2
        assert out.figures["pairs"] == 3 + 1 + 1
        model = cross_vit()
        model.itm.bias.data[1] = 9.0  # says that they belong together
        one = MatchingLoss()(pair_state(model, pairs([0]), uniform()))
        assert one.figures["skipped"] == 2
        assert one.figures["accuracy"] == one.figures["pairs"] == 1

    def test_captions_are_padded_to_the_longest(self, state):
        given, generated = (matching_pairs(state, False, True)[name] for name in ("given", "generated"))
        assert given.mask.shape[1] > generated.mask.shape[1]
        joined = Pairs.join([generated, given])
        length = generated.mask.shape[1]
        assert torch.equal(joined.tokens[:8, :length], generated.tokens) and not joined.tokens[:8, length:].any()
        assert torch.equal(joined.mask[:8, :length], generated.mask) and not joined.mask[:8, length:].any()
        assert torch.equal(joined.tokens[8:], given.tokens)
        assert torch.equal(joined.label, torch.cat([generated.label, given.label]))

    def test_term(self, state):
        out = MatchingLoss()(state)
        matching = match(state, True, True)
        pairs_, logits = matching.pairs, matching.logits
        expected = torch.nn.functional.cross_entropy(logits[pairs_.counted], pairs_.label[pairs_.counted])
        assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        right = (logits.argmax(1) == pairs_.label)[pairs_.counted].float().mean()
        assert out.figures["accuracy"].item() == pytest.approx(right.item())
        assert out.figures["pairs"] == 4 + 3 + 3 + 6
        assert out.figures["skipped"] == 0
        for hard, generated, count in ((True, False, 10), (False, True, 10), (False, False, 4)):
            term = MatchingLoss(hard_negatives=hard, generated_negatives=generated)
            assert term(state).figures["pairs"] == count
            assert term.reads_negatives == generated

    def test_without_a_false_pair_there_is_nothing_to_learn(self):
        term = MatchingLoss(hard_negatives=False)
        assert term.can_learn(labelled=True, generated=False) and term.can_learn(labelled=False, generated=True)
        assert not term.can_learn(labelled=False, generated=False)
        unread = MatchingLoss(hard_negatives=False, generated_negatives=False)
        assert not unread.can_learn(labelled=False, generated=True)

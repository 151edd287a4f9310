import math

import pytest
import torch

from crossvit.objectives.masked import STREAM, MaskedLanguageLoss, choose_masked, masked_word_loss
from crossvit.tasks.pair_state import pair_state
from tests.losses import gradient_is_right, hand_state, unit
from tests.small import WORDS, cross_vit, pairs, uniform

MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)


class TestPlaces:
    def test_by_hand(self):
        draw = torch.tensor([[0.0, 0.3, 0.1, 0.14, 0.0, 0.0]] * 4)
        expected = [
            [0, 0, 1, 1, 0, 0],  # below .15, between the frame
            [0, 1, 0, 0, 0, 0],  # one word: the least, though above .15
            [0, 0, 0, 0, 0, 0],  # a frame without a word
            [0, 0, 0, 0, 0, 0],  # a single token
        ]
        assert choose_masked(MASK, draw, 0.15).int().tolist() == expected

    def test_the_bound_is_open(self):
        draw = torch.tensor([[0.0, 0.15, 0.05, 0.2, 0.0, 0.0]])
        assert choose_masked(MASK[:1], draw, 0.15).nonzero()[:, 1].tolist() == [2]

    def test_never_the_frame_nor_padding_and_at_least_one(self):
        length = torch.arange(3, 33)
        mask = torch.arange(40) < length[:, None]
        frame = torch.zeros_like(mask)
        frame[:, 0] = True
        frame[torch.arange(30), length - 1] = True
        for seed in range(40):
            chosen = choose_masked(mask, torch.rand(30, 40, generator=torch.Generator().manual_seed(seed)), 0.15)
            assert not (chosen & ~mask).any()
            assert not (chosen & frame).any()
            assert chosen.any(dim=1).all()

    def test_the_share(self):
        mask = torch.ones(200, 102, dtype=torch.bool)
        chosen = choose_masked(mask, torch.rand(200, 102, generator=torch.Generator().manual_seed(0)), 0.3)
        # of 20,000 places; four standard deviations are .013
        assert chosen.sum().item() / 20_000 == pytest.approx(0.3, abs=0.013)


def test_loss_by_hand():
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 0]])
    expected = [math.log(math.exp(2) + 2), math.log(3)]
    assert masked_word_loss(logits, torch.tensor([1, 2])).tolist() == pytest.approx(expected, abs=1e-6)
    assert masked_word_loss(logits.bfloat16(), torch.tensor([1, 2])).dtype == torch.float32


def test_the_gradient_is_right():
    words = torch.tensor([2, 0, 1])
    gradient_is_right(
        lambda x: masked_word_loss(x, words),
        lambda x: -torch.log_softmax(x, 1)[torch.arange(3), words],
        [unit(3, 4)],
    )


def written(draw, kind, other, label=None):
    """Two captions of three words between their frames, of a vocabulary of 10. A word's embedding is its id and that of the mask -1; the
    head says with a logit of 2 what it reads, and "4" of the mask. Returns the state and what the text encoder reads."""
    read = []
    tokens = torch.tensor([[2, 4, 5, 6, 3], [2, 7, 4, 9, 3]])
    numbers = torch.tensor([draw, kind, other]).flatten()

    def word_logits(states):
        said = torch.where(states[:, 0] == -1, 4.0, states[:, 0].float()).long()
        return 2.0 * torch.nn.functional.one_hot(said, 10)

    def given(n: int, stream: int = 0):
        assert (n, stream) == (len(numbers), STREAM)
        return numbers

    return hand_state(
        torch.eye(2),
        torch.eye(2),
        tokens=tokens,
        text_mask=torch.ones(2, 5, dtype=torch.bool),
        label=None if label is None else torch.tensor(label),
        uniform=given,
        vocab_size=10,
        embed=lambda ids: ids[..., None].bfloat16(),
        mask_embedding=torch.tensor([-1.0]),
        encode_words=lambda words: read.append(words[..., 0]) or (words, None, None),
        fuse_words=lambda visual, words, pooled, mask: words,
        word_logits=word_logits,
    ), read


IN, OUT = 0.1, 0.9  # numbers of a place that is chosen at 15 %, and of one that is not
HIDE, CHANGE, KEEP = 0.79, 0.85, 0.95


class TestTerm:
    def test_hidden_changed_and_kept_words(self):
        draw = [[0, IN, IN, IN, 0], [0, OUT, 0.05, OUT, 0]]
        kind = [[0, HIDE, CHANGE, KEEP, 0], [0, HIDE, HIDE, HIDE, 0]]
        other = [[0.95] * 5, [0.0] * 5]
        state, read = written(draw, kind, other)
        out = MaskedLanguageLoss()(state)
        assert read[0].tolist() == [[2, -1, 9, 6, 3], [2, 7, -1, 9, 3]]  # .95 x 10 -> word 9
        assert read[0].dtype == torch.bfloat16  # as the words are
        # asked for are 4, 5, 6 and 4, and said 4, 9, 6 and 4
        right, wrong = math.log(math.exp(2) + 9) - 2, math.log(math.exp(2) + 9)
        assert out.loss.item() == pytest.approx((3 * right + wrong) / 4, abs=1e-6)
        assert out.figures["accuracy"] == 0.75
        assert out.figures["words"] == 4

    def test_the_bounds_of_the_kinds(self):
        draw = [[0, IN, IN, IN, 0]] * 2
        kind = [[0, 0.0, 0.8, 0.9, 0]] * 2
        state, read = written(draw, kind, [[0.5] * 5] * 2)
        MaskedLanguageLoss()(state)
        assert read[0].tolist() == [[2, -1, 5, 6, 3], [2, -1, 5, 9, 3]]

    def test_words_of_false_pairs_are_read_but_not_asked_for(self):
        draw = [[0, IN, IN, OUT, 0], [0, OUT, IN, OUT, 0]]
        kind = [[0, HIDE, HIDE, HIDE, 0]] * 2
        state, read = written(draw, kind, [[0.0] * 5] * 2, label=[1, 0])
        out = MaskedLanguageLoss()(state)
        assert read[0].tolist() == [[2, -1, -1, 6, 3], [2, 7, -1, 9, 3]]
        assert out.figures["words"] == 2
        assert out.figures["accuracy"] == 0.5  # words 4 and 5; row 1's 4 does not count
        expected = math.log(math.exp(2) + 9) - 1
        assert out.loss.item() == pytest.approx(expected, abs=1e-6)

    def test_a_single_word(self):
        draw = [[0, IN, OUT, OUT, 0], [0, IN, OUT, OUT, 0]]
        state, _ = written(draw, [[HIDE] * 5] * 2, [[0.0] * 5] * 2, label=[1, 0])
        out = MaskedLanguageLoss()(state)
        assert out.figures["words"] == out.figures["accuracy"] == 1
        assert out.loss.item() == pytest.approx(math.log(math.exp(2) + 9) - 2, abs=1e-6)

    def test_no_word_at_all(self):
        state, _ = written([[0.0] * 5] * 2, [[0.0] * 5] * 2, [[0.0] * 5] * 2, label=[0, 0])
        out = MaskedLanguageLoss()(state)
        assert out.loss == out.figures["accuracy"] == 0

    def test_shares(self):
        """80 % hidden, 10 % replaced by any word, 10 % as they were; of 10,000 words, four standard deviations are .016."""
        size, length = 200, 52
        tokens = torch.full((size, length), 1000)
        seen = []
        state = hand_state(
            torch.zeros(size, 2),
            torch.zeros(size, 2),
            tokens=tokens,
            text_mask=torch.ones(size, length, dtype=torch.bool),
            uniform=uniform(),
            vocab_size=1000,
            embed=lambda ids: ids[..., None].float(),
            mask_embedding=torch.tensor([-1.0]),
            encode_words=lambda words: seen.append(words[..., 0]) or (words, None, None),
            fuse_words=lambda visual, words, pooled, mask: words,
            word_logits=lambda states: torch.zeros(len(states), 1001),
        )
        MaskedLanguageLoss(probability=0.999)(state)
        inner = seen[0][:, 1:-1]
        assert (inner == -1).float().mean().item() == pytest.approx(0.8, abs=0.016)
        assert (inner == 1000).float().mean().item() == pytest.approx(0.1, abs=0.012)
        other = inner[(inner >= 0) & (inner < 1000)]
        assert other.mean().item() == pytest.approx(500, abs=40)
        assert other.min() < 10 and other.max() > 990
        assert (seen[0][:, [0, -1]] == 1000).all()

    @pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
    def test_a_share_of_nothing_or_all_is_refused(self, probability):
        with pytest.raises(ValueError, match="probability must lie between 0 and 1"):
            MaskedLanguageLoss(probability=probability)


class TestWithTheModel:
    @staticmethod
    def hidden(n: int, stream: int = 0):
        """All chosen words are hidden: of the three numbers for each place the second is 0."""
        return torch.cat([torch.rand(n // 3, generator=torch.Generator().manual_seed(1)), torch.zeros(n - n // 3)])

    def test_what_is_hidden_cannot_be_read(self):
        model, batch, term = cross_vit().eval(), pairs(range(5)), MaskedLanguageLoss(probability=0.5)
        chosen = choose_masked(batch.token_mask, self.hidden(3 * batch.tokens.numel()).view(3, 5, -1)[0], 0.5)
        asked = []
        for tokens in (batch.tokens, torch.where(chosen, (batch.tokens + 7) % WORDS, batch.tokens)):
            state = pair_state(model, batch._replace(tokens=tokens), self.hidden)
            head = state.word_logits
            state.word_logits = lambda x, head=head: asked.append(head(x)) or asked[-1]
            asked.append(term(state).loss)
        loss, logits, other_loss, other_logits = asked[1], asked[0], asked[3], asked[2]
        assert len(logits) == chosen.sum()
        torch.testing.assert_close(logits, other_logits)  # the answers are the same
        assert loss.item() != pytest.approx(other_loss.item(), abs=1e-4)  # and other words are right

    def test_hiding_changes_what_the_model_reads_and_its_picture_counts(self):
        model, batch, term = cross_vit().eval(), pairs(range(5)), MaskedLanguageLoss(probability=0.5)
        losses = {}
        for name, image, numbers in (
            ("hidden", batch.image, self.hidden),
            (
                "kept",
                batch.image,
                lambda n, stream=0: torch.cat([self.hidden(n)[: n // 3], torch.ones(n - n // 3) - 1e-3]),
            ),
            ("other pictures", batch.image.flip(0), self.hidden),
        ):
            losses[name] = term(pair_state(model, batch._replace(image=image), numbers)).loss.item()
        assert abs(losses["hidden"] - losses["kept"]) > 1e-4
        assert abs(losses["hidden"] - losses["other pictures"]) > 1e-4

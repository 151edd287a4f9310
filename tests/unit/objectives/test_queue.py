import math

import pytest
import torch

from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.queue import PairQueue
from tests.losses import hand_state, unit


def batch(*ids: int, label=None):
    """Pairs whose teacher embeds picture i as (i, ...) and its caption as (-i, ...), so that rows can be told in the queue."""
    rows = torch.tensor([[float(i)] * 2 for i in ids])
    teacher = hand_state(rows, -rows)
    return hand_state(
        unit(len(ids), 2),
        unit(len(ids), 2),
        image_id=ids,
        text_id=[i + 100 for i in ids],
        label=None if label is None else torch.tensor(label),
        make_teacher=lambda: teacher,
    )


def held(queue: PairQueue) -> list[int]:
    """The ids in the queue, after a check that all its columns speak of the same pairs."""
    found = queue.read(2, torch.device("cpu"))
    assert torch.equal(found.text_id, found.image_id + 100)
    assert torch.equal(found.image, found.image_id[:, None].expand(-1, 2).float())
    assert torch.equal(found.text, -found.image)
    return found.image_id.tolist()


def test_the_newest_pairs_take_the_places_of_the_oldest():
    queue = PairQueue(5)
    assert held(queue) == []
    expected = [[1, 2], [1, 2, 3, 4], [6, 2, 3, 4, 5], [6, 7, 8, 4, 5], [6, 7, 8, 9, 10], [11, 12, 8, 9, 10]]
    for number, after in enumerate(expected):
        queue.add(batch(2 * number + 1, 2 * number + 2))
        assert held(queue) == after


def test_a_batch_greater_than_the_queue_leaves_its_last_rows():
    queue = PairQueue(3)
    queue.add(batch(1, 2, 3, 4, 5))
    assert held(queue) == [3, 4, 5]
    queue.add(batch(6, 7, 8, 9))
    assert held(queue) == [7, 8, 9]
    queue.add(batch(10))
    assert held(queue) == [10, 8, 9]


def test_only_true_pairs_enter():
    queue = PairQueue(4)
    queue.add(batch(1, 2, 3, label=[0, 1, 0]))
    assert held(queue) == [2]
    queue.add(batch(4, 5, label=[0, 0]))
    assert held(queue) == [2]


def test_what_enters_has_no_gradient():
    queue, state = PairQueue(4), batch(1, 2)
    state.teacher.image_embedding.requires_grad_()
    queue.add(state)
    assert not queue.image.requires_grad


def test_an_empty_queue_has_the_width_of_the_embeddings():
    found = PairQueue(4).read(7, torch.device("cpu"))
    assert found.image.shape == found.text.shape == (0, 7)
    assert found.image_id.dtype == found.text_id.dtype == torch.long


def test_a_size_below_one_is_refused():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"queue_size must be at least 1, got {size}"):
            PairQueue(size)


class TestCheckpoint:
    @staticmethod
    def saved(size: int, *ids: int) -> dict:
        queue = PairQueue(size)
        for i in ids:
            queue.add(batch(i))
        return queue.state_dict()

    def test_it_goes_on_as_it_was(self):
        queue = PairQueue(3)
        queue.load_state_dict(self.saved(3, 1, 2, 3, 4))
        assert held(queue) == [4, 2, 3]
        queue.add(batch(5))
        assert held(queue) == [4, 5, 3]

    def test_one_that_is_not_full(self):
        queue = PairQueue(3)
        queue.load_state_dict(self.saved(3, 1, 2))
        queue.add(batch(3, 4))
        assert held(queue) == [4, 2, 3]

    def test_into_a_shorter_queue_come_the_newest(self):
        queue = PairQueue(3)
        queue.load_state_dict(self.saved(5, 1, 2, 3, 4, 5, 6, 7))
        assert held(queue) == [5, 6, 7]
        queue.add(batch(8, 9))
        assert held(queue) == [8, 9, 7]

    def test_into_a_longer_queue_come_all_the_oldest_first(self):
        queue = PairQueue(5)
        queue.load_state_dict(self.saved(3, 1, 2, 3, 4))
        assert held(queue) == [2, 3, 4]
        queue.add(batch(5, 6, 7))
        assert held(queue) == [7, 3, 4, 5, 6]

    def test_into_one_that_holds_others_already(self):
        queue = PairQueue(3)
        queue.add(batch(8, 9))
        queue.load_state_dict(self.saved(3, 1))
        assert held(queue) == [1]

    def test_a_checkpoint_without_a_queue_says_so(self):
        with pytest.raises(RuntimeError, match="Missing key"):
            PairQueue(3).load_state_dict({})


class TestInTheContrastiveLoss:
    def state(self, image_id=(0, 1), text_id=(0, 1)):
        teacher = hand_state(torch.eye(2), torch.eye(2))
        return hand_state(
            torch.eye(2), torch.eye(2), 3.0, image_id=image_id, text_id=text_id, make_teacher=lambda: teacher
        )

    def test_the_first_batch_meets_itself_alone(self):
        term = ContrastiveLoss(queue_size=4)
        out = term(self.state())
        assert out.figures["queue"] == 0
        assert out.loss == ContrastiveLoss()(self.state()).loss
        assert len(term.queue.image_id) == 2

    def test_old_pairs_are_further_wrong_answers(self):
        term = ContrastiveLoss(queue_size=4)
        term(self.state())
        out = term(self.state(image_id=[2, 3], text_id=[2, 3]))
        # each row: its own at logit 3, one at 0, and in the queue again one at 3 and one at 0
        assert out.loss.item() == pytest.approx(math.log(2 * math.exp(3) + 2) - 3, abs=1e-6)
        assert out.figures["queue"] == 2

    def test_old_pairs_with_the_ids_of_a_row_are_its_positives(self):
        term = ContrastiveLoss(queue_size=4)
        term(self.state())
        out = term(self.state(image_id=[0, 3], text_id=[2, 3]))
        e = math.exp(3)
        # picture 0 owns queued caption 0 too, and picture 0 of the queue owns caption 2: two positives, both at logit 3.
        # row 1 knows none of them
        assert out.loss.item() == pytest.approx(math.log(2 * e + 2) - 3, abs=1e-6)
        images, texts = torch.tensor([0, 3, 0, 1]), torch.tensor([2, 3, 0, 1])
        term.queue.image = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # as if the teacher confused the two
        term.queue.text = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        term.queue.image_id, term.queue.text_id = images[2:], texts[2:]
        # row 0: positives at logits 3 and 0, mean of -log p; row 1: its own at 3
        row = [math.log(2 * e + 2) - (3 + 0) / 2, math.log(2 * e + 2) - 3]
        again = term.eval()(self.state(image_id=[0, 3], text_id=[2, 3]))
        assert again.loss.item() == pytest.approx(sum(row) / 2, abs=1e-6)

    def test_a_queued_pair_is_true_even_where_the_batch_holds_a_false_one(self):
        """Row 1 is false; the queue says that its caption is true of picture 0."""
        term = ContrastiveLoss(queue_size=4)
        term.queue.add(self._one(0, 1))
        state = self.state()
        state.label = torch.tensor([1, 0])
        out = term.eval()(state)
        e = math.exp(3)
        # columns: 2 of the batch, 1 queued. Image rows: picture 0 has captions 0, 1 and the queued one (1 again), logits 3, 0, 3;
        # picture 1 has none. Text rows: caption 0 is true of picture 0 and the queued picture 0, logits 3, 3;
        # caption 1 of the same two, logits 0, 0 against 1 at 3.
        image = math.log(2 * e + 1) - (3 + 0 + 3) / 3
        text = (math.log(2 * e + 1) - 3 + math.log(e + 2) - 0) / 2
        assert out.loss.item() == pytest.approx((image + text) / 2, abs=1e-6)

    @staticmethod
    def _one(image_id: int, text_id: int):
        row = torch.tensor([[1.0, 0.0]])
        return hand_state(row, row, image_id=[image_id], text_id=[text_id], make_teacher=lambda: hand_state(row, row))

    def test_evaluation_leaves_it_alone(self):
        term = ContrastiveLoss(queue_size=4).eval()
        term(self.state())
        assert len(term.queue.image_id) == 0

    def test_without_one_there_is_no_teacher_and_nothing_in_the_checkpoint(self):
        term = ContrastiveLoss()
        assert term.queue is None
        assert not term.needs_teacher
        assert term.state_dict() == {}
        assert ContrastiveLoss(queue_size=1).needs_teacher

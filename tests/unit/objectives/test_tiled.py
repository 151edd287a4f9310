import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.sigmoid import SigmoidLoss
from crossvit.objectives.term import known_pairs
from crossvit.objectives.tiled import LogSumExp, Softplus, list_positives, tiled_contrastive_loss, tiled_sigmoid_loss
from crossvit.tasks.pair_state import pair_state
from tests.distributed import run_distributed
from tests.losses import hand_state, unit
from tests.small import cross_vit, pairs

SIZE, WIDTH = 12, 5
IMAGE_ID = torch.tensor([4, 4, 1, 2, 3, 9, 9, 9, 0, 5, 6, 7])
TEXT_ID = torch.tensor([7, 8, 7, 2, 3, 1, 4, 1, 5, 5, 6, 0])
TRUE = torch.tensor([True] * 9 + [False] * 2 + [True])


def leaves(seed: int = 0) -> list[torch.Tensor]:
    """image and text (12, 5), negatives (3, 5), scale, bias: fp64, ready for gradients."""
    rows = [unit(n, WIDTH, seed=seed + i).double() for i, n in enumerate((SIZE, SIZE, 3))]
    numbers = [torch.tensor(x, dtype=torch.float64) for x in (14.0, -3.0)]
    return [x.clone().requires_grad_() for x in (*rows, *numbers)]


def dense(rows=slice(None)) -> torch.Tensor:
    return known_pairs(IMAGE_ID[rows], TEXT_ID, IMAGE_ID, TEXT_ID, TRUE)


def whole(kind: str, image, text, negatives, scale, bias, smoothing: float) -> torch.Tensor:
    """The loss from the whole matrix, written out in fp64."""
    positives = dense()
    logits, further = scale * image @ text.t(), scale * image @ negatives.t()
    wide = torch.cat([logits, further], dim=1)
    if kind == "sigmoid":
        signs = torch.nn.functional.pad(2.0 * positives - 1, (0, len(negatives)), value=-1.0)
        return torch.nn.functional.softplus(-signs * (wide + bias)).sum() / SIZE
    means = []
    for found, wanted in ((wide, positives), (logits.t(), positives.t())):
        log_p = found.log_softmax(dim=1)
        target = torch.zeros_like(found)
        target[:, :SIZE] = wanted.double() / wanted.sum(1, keepdim=True).clamp(min=1)
        target = (1 - smoothing) * target + smoothing / found.shape[1]
        counted = wanted.any(dim=1)
        means.append(-(target * log_p).sum(dim=1)[counted].mean())
    return sum(means) / 2


def tiled(kind, image, text, negatives, scale, bias, smoothing, tile, rows=None):
    rows = torch.arange(SIZE) if rows is None else rows
    positives = list_positives(rows, IMAGE_ID, TEXT_ID, TRUE)
    if kind == "sigmoid":
        return tiled_sigmoid_loss(image, text, scale, bias, positives, negatives, tile)
    return tiled_contrastive_loss(image, text, scale, positives, negatives, smoothing, tile)


def test_the_list_of_positives_is_the_matrix():
    for rows in (torch.arange(SIZE), torch.arange(1, SIZE, 3)):
        found = list_positives(rows, IMAGE_ID, TEXT_ID, TRUE)
        matrix = torch.zeros(len(rows), SIZE, dtype=torch.bool)
        matrix[found.image, found.text] = True
        assert torch.equal(matrix, dense(rows)) and len(found.image) == matrix.sum()
        assert torch.equal(found.of_image, dense().sum(1)) and torch.equal(found.of_text, dense().sum(0))


def test_no_pair_is_true():
    found = list_positives(torch.arange(3), torch.arange(3), torch.arange(3), torch.zeros(3, dtype=torch.bool))
    assert len(found.image) == 0 and not found.of_image.any()
    image, text = unit(3, 4), unit(3, 4, seed=1)
    assert tiled_contrastive_loss(image, text, torch.tensor(10.0), found) == 0


@pytest.mark.parametrize("tile", [1, 5, 12, 100])
@pytest.mark.parametrize(("kind", "smoothing"), [("softmax", 0.0), ("softmax", 0.2), ("sigmoid", 0.0)])
def test_value_and_gradients_are_those_of_the_whole_matrix(kind, smoothing, tile):
    mine, theirs = leaves(), leaves()
    loss, expected = tiled(kind, *mine, smoothing, tile), whole(kind, *theirs, smoothing)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    count = 5 if kind == "sigmoid" else 4
    found = torch.autograd.grad(loss, mine[:count])
    for grad, reference in zip(found, torch.autograd.grad(expected, theirs[:count]), strict=True):
        torch.testing.assert_close(grad, reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kind", "smoothing"), [("softmax", 0.2), ("sigmoid", 0.0)])
def test_without_generated_captions(kind, smoothing):
    image, text, negatives, *numbers = leaves()
    found = tiled(kind, image, text, None, *numbers, smoothing, 5)
    assert found.item() == pytest.approx(whole(kind, image, text, negatives[:0], *numbers, smoothing).item(), abs=1e-12)


def test_one_true_pair_counts_whole():
    image, text, scale = unit(3, 4), unit(3, 4, seed=1), torch.tensor(5.0)
    positives = list_positives(*[torch.arange(3)] * 3, torch.tensor([True, False, False]))
    logits = scale * image @ text.t()
    expected = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(0)[0, 0]) / 2
    assert tiled_contrastive_loss(image, text, scale, positives).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_rows_of_half_precision_are_compared_in_full(kind):
    half = [x.detach().bfloat16() for x in leaves()]
    found = tiled(kind, *half, 0.0, 5)
    assert found.dtype == torch.float32
    assert torch.equal(found, tiled(kind, *(x.float() for x in half), 0.0, 5))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_within_autocast_it_is_computed_in_full_precision(kind):
    mine, theirs = ([x.detach().float().requires_grad_() for x in leaves()] for _ in range(2))
    expected = torch.autograd.grad(tiled(kind, *theirs, 0.0, 5), theirs[:4])
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiled(kind, *mine, 0.0, 5)
        found = torch.autograd.grad(loss, mine[:4])
    assert loss.item() == pytest.approx(whole(kind, *leaves(), 0.0).item(), rel=1e-5)
    for grad, reference in zip(found, expected, strict=True):
        assert torch.equal(grad, reference)


def test_gradients_by_differences():
    query, candidates, scale = unit(3, 4).double(), unit(5, 4, seed=1).double(), torch.tensor(3.0).double()
    inputs = [x.requires_grad_() for x in (query, candidates, scale)]
    assert torch.autograd.gradcheck(lambda *x: LogSumExp.apply(*x, 2), inputs)
    bias = torch.tensor(-1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: Softplus.apply(*x, 2), [*inputs, bias])


def test_the_greatest_scale_does_not_overflow():
    image = unit(40, 8)
    positives = list_positives(*[torch.arange(40)] * 3, torch.ones(40, dtype=torch.bool))
    for text in (image, -image):
        for scale in (14.0, 100.0):
            rows = [x.clone().requires_grad_() for x in (image, text)]
            loss = tiled_contrastive_loss(*rows, torch.tensor(scale), positives, tile=7)
            exact = [x.detach().double().requires_grad_() for x in rows]
            matrix = torch.eye(40, dtype=torch.bool)
            logits = scale * exact[0] @ exact[1].t()
            expected = -(logits.log_softmax(1)[matrix].mean() + logits.t().log_softmax(1)[matrix].mean()) / 2
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
            for grad, reference in zip(
                torch.autograd.grad(loss, rows), torch.autograd.grad(expected, exact), strict=True
            ):
                torch.testing.assert_close(grad.double(), reference, rtol=5e-6, atol=5e-6)


def _share(rank: int, world_size: int, kind: str, smoothing: float):
    """What one rank's loss is, and the gradients of its own rows summed up to those of the global batch."""
    from crossvit.distributed import gather_with_grad

    image, text, negatives, scale, bias = leaves()
    rows = torch.arange(rank, SIZE, world_size)
    own = [x[rows].detach().requires_grad_() for x in (image, text)]
    loss = tiled(kind, own[0], gather_with_grad(own[1]), negatives, scale, bias, smoothing, 5, rows)
    loss.backward()
    return loss.item(), [x.grad / world_size for x in own], scale.grad / world_size, negatives.grad / world_size


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_number_of_processes_gives_the_same(world_size):
    for kind, smoothing in (("softmax", 0.2), ("sigmoid", 0.0)):
        reference = leaves()
        expected = whole(kind, *reference, smoothing)
        expected.backward()
        found = run_distributed(_share, world_size, kind, smoothing)
        assert sum(loss for loss, *_ in found) / world_size == pytest.approx(expected.item(), abs=1e-10)
        for r, (_, (image, text), _, _) in enumerate(found):
            torch.testing.assert_close(image, reference[0].grad[r::world_size], rtol=0, atol=1e-6)
            torch.testing.assert_close(text, reference[1].grad[r::world_size], rtol=0, atol=1e-6)
        torch.testing.assert_close(sum(scale for *_, scale, _ in found), reference[3].grad, rtol=0, atol=1e-6)
        torch.testing.assert_close(sum(x for *_, x in found), reference[2].grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("term", [ContrastiveLoss, SigmoidLoss])
@pytest.mark.parametrize(
    ("negatives", "settings"),
    [
        ({"negatives": 2}, {}),
        ({"negatives": 2, "without_negatives": [3]}, {}),  # whose places are filled
        ({"negatives": 2}, {"generated_negatives": False}),
        ({}, {}),
    ],
)
def test_in_a_state_the_terms_give_what_they_give_without_tiles(term, negatives, settings):
    found = []
    for tile in (None, 2):
        model = cross_vit()
        out = term(tile=tile, **settings)(pair_state(model, pairs(range(5), **negatives)))
        out.loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((out.loss.detach(), out.figures, grads))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Of all tensors that are computed, the number of elements of the largest."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor))])
        return found


@pytest.mark.parametrize("term", [ContrastiveLoss, SigmoidLoss])
def test_no_tensor_is_larger_than_a_tile(term):
    for tile, size in ((None, 100 * 100), (5, 100 * 5)):
        image, text = unit(100, 4).requires_grad_(), unit(100, 4, seed=1).requires_grad_()
        with Largest() as largest:
            term(tile=tile)(hand_state(image, text, 5.0)).loss.backward()
        assert largest.size == size


def test_the_terms_take_tiles():
    for term in (ContrastiveLoss, SigmoidLoss):
        with pytest.raises(ValueError, match="tile must be at least 1, or null, got 0"):
            term(tile=0)
        term(tile=1)
    with pytest.raises(ValueError, match="set queue_size=0 or tile=null"):
        ContrastiveLoss(tile=4, queue_size=3)

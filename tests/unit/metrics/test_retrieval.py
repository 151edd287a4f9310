"""Both directions against the dense definition; exactness under chunks; the N-way draw."""

import math

import pytest
import torch
import torch.nn.functional as F

from crossvit.metrics import (
    ExactDot,
    ImageTextPairs,
    accuracy_at_k,
    block_retrieval,
    bootstrap,
    chance_at_k,
    embedding_retrieval,
    estimate,
    n_way_retrieval,
)
from crossvit.metrics import ranking as ranking_module
from crossvit.metrics.n_way import n_way
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE


def corpus(images=12, captions=3, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(images, width, generator=generator), dim=1)
    owner = torch.arange(images).repeat_interleave(captions)
    text = F.normalize(image[owner] + 0.8 * torch.randn(len(owner), width, generator=generator), dim=1)
    return image, text, ImageTextPairs(torch.arange(images), owner)


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_both_directions_equal_the_dense_definition():
    image, text, pairs = corpus()
    found = embedding_retrieval(image, text, pairs)
    dense, positives = image.double() @ text.double().T, pairs.texts_of(torch.arange(12))
    for k in (1, 2, 5):
        expected = accuracy_at_k(dense, positives, k).double()
        assert torch.allclose(found[IMAGE_TO_TEXT].accuracy(k), expected)
        assert torch.allclose(found[TEXT_TO_IMAGE].accuracy(k), accuracy_at_k(dense.T, positives.T, k).double())
    assert 0 < found[IMAGE_TO_TEXT].estimate(1).value < 1
    assert found[IMAGE_TO_TEXT].num_candidates == 36 and found[TEXT_TO_IMAGE].num_candidates == 12
    assert found[IMAGE_TO_TEXT].chance(5) == pytest.approx(chance_at_k(36, 3, 5))
    assert found[TEXT_TO_IMAGE].chance(5) == pytest.approx(5 / 12)
    assert found[TEXT_TO_IMAGE].estimate(1).queries == 36


@pytest.mark.parametrize("chunk", [(1, 1), (5, 7), (None, 4), (3, None)])
def test_chunks_change_no_count(chunk):
    image, text, pairs = corpus()
    whole = embedding_retrieval(image, text, pairs)
    asked = []
    dot = ExactDot(image, text)

    def score(images, texts):
        block = dot(images, texts)
        asked.append(tuple(block.shape))
        return block

    parts = block_retrieval(score, pairs, chunk=chunk)
    assert all(same(whole[direction], parts[direction]) for direction in whole)
    # An image asks first; a block of the other direction has its queries, the texts, second.
    assert asked[0] == (chunk[0] or 12, chunk[1] or 36)
    assert asked[-1][1] <= (chunk[0] or 36) and asked[-1][0] <= (chunk[1] or 12)


def test_counts_are_whole_and_the_share_is_double():
    result = embedding_retrieval(*corpus())[IMAGE_TO_TEXT]
    assert result.precision.dtype == torch.float64
    assert {value.dtype for name, value in vars(result).items() if name != "precision"} == {torch.int64}


def test_a_row_longer_than_a_block_comes_alone(monkeypatch):
    monkeypatch.setattr(ranking_module, "BLOCK", 50)
    assert list(ranking_module.query_chunks(range(3, 5), 100)) == [slice(3, 4), slice(4, 5)]


def test_no_block_is_larger_than_asked_for(monkeypatch):
    image, text, pairs = corpus()
    monkeypatch.setattr(ranking_module, "BLOCK", 80)
    sizes = []

    def score(images, texts):
        block = image[images] @ text[texts].T
        sizes.append(block.numel())
        return block

    found = block_retrieval(score, pairs)
    assert max(sizes) <= 80 and len(found[TEXT_TO_IMAGE].query) == 36


def test_collapsed_embeddings_tie_to_the_bit_whatever_the_shapes():
    # In float32 the columns of one matrix product need not agree, which would break these ties.
    generator = torch.Generator().manual_seed(0)
    for width in (48, 257):
        row = F.normalize(torch.randn(1, width, generator=generator), dim=1)
        image, text = row.expand(37, -1), row.expand(101, -1)
        pairs = ImageTextPairs(torch.arange(37), torch.arange(101) % 37)
        found = embedding_retrieval(image, text, pairs)
        for result in found.values():
            assert (result.greater == 0).all()
            assert torch.equal(result.tied + result.matched, result.candidates)
        assert found[TEXT_TO_IMAGE].estimate(1).value == pytest.approx(1 / 37)
        assert found[TEXT_TO_IMAGE].remarks(1) == [
            "ties decide Acc@1: between 0.0% and 100.0%, reported by expectation"
        ]


def test_remarks_are_on_acc_at_1_and_on_nothing_where_nothing_ties():
    pairs = ImageTextPairs(torch.tensor([0]), torch.tensor([0, 1]))
    tied, apart = (
        block_retrieval(lambda images, texts, row=row: row[images, texts], pairs)[IMAGE_TO_TEXT]
        for row in (torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    )
    assert "ties decide Acc@1" in tied.remarks()[0] and tied.remarks(2) == []
    assert apart.remarks() == []


def test_exact_dot_does_not_depend_on_the_order_of_summation():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(20, 300, generator=generator), torch.randn(30, 300, generator=generator)
    order = torch.randperm(300, generator=generator)
    one, other = ExactDot(image, text), ExactDot(image[:, order], text[:, order])
    everything = slice(None)
    assert torch.equal(one(everything, everything), other(everything, everything))
    rows, columns = torch.arange(20).repeat_interleave(30), torch.arange(30).repeat(20)
    assert torch.equal(one(everything, everything).flatten(), one.pairs(rows, columns))
    scores = one(everything, everything)
    truth = image.double() @ text.double().T
    largest = image.norm(dim=1).max() * text.norm(dim=1).max()
    scale = 2.0 ** (scores / truth).log2().median().round()
    assert ((scores / scale - truth) / largest).abs().max() < 3e-8


def test_exact_dot_keeps_26_bits_of_normalised_rows_and_takes_rows_that_are_no_numbers():
    image, text, _ = corpus()
    assert ExactDot(image, text).unit == 2.0**52
    nothing = ExactDot(torch.full((2, 8), float("nan")), text)
    assert nothing(slice(0, 2), slice(0, 3)).isnan().all()


def test_score_functions_that_return_another_shape_are_refused():
    _, _, pairs = corpus()
    with pytest.raises(ValueError, match="score returned"):
        block_retrieval(lambda images, texts: torch.zeros(1, 1), pairs)
    with pytest.raises(ValueError, match=r"score returned \(2,\) for 48 pairs"):
        n_way_retrieval(lambda images, texts: torch.zeros(2), pairs, 4)


def test_parts_that_are_none_are_refused():
    image, text, pairs = corpus()
    for part in ((2, 2), (-1, 2)):
        with pytest.raises(ValueError, match=r"part must be \(rank, world_size\)"):
            embedding_retrieval(image, text, pairs, part=part)


def test_embeddings_must_be_one_a_row():
    image, text, pairs = corpus()
    with pytest.raises(ValueError, match="12 image and 5 text embeddings for 12 images and 36 texts"):
        embedding_retrieval(image, text[:5], pairs)


def test_nan_is_counted_and_ranked_last():
    image, text, pairs = corpus()
    text = text.clone()
    text[0] = float("nan")
    found = embedding_retrieval(image, text, pairs)
    assert found[IMAGE_TO_TEXT].nan.tolist() == [1] * 12
    assert found[TEXT_TO_IMAGE].nan.sum() == 12 and found[TEXT_TO_IMAGE].tied[0] == 11
    assert "12 scores are NaN" in found[TEXT_TO_IMAGE].remarks()[0]


def test_queries_without_an_answer_are_left_out_and_said():
    image, text, _ = corpus(images=4, captions=1)
    pairs = ImageTextPairs(torch.arange(3), torch.arange(4))  # the last image was damaged
    result = embedding_retrieval(image[:3], text, pairs)[TEXT_TO_IMAGE]
    assert result.estimate(1).queries == 3 and len(result.query) == 4
    assert "1 of 4 queries have no positive" in result.remarks()[0]


def test_mean_rank_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.5, 0.0]])
    pairs = ImageTextPairs(torch.tensor([0, 1]), torch.tensor([1, 0, 2, 1]))
    result = block_retrieval(lambda images, texts: scores[images, texts], pairs)[IMAGE_TO_TEXT]
    # First image: its one caption is second. Second: two tie with its first caption, the best of its two: 1 + 2/2.
    assert result.mean_rank().value == pytest.approx((2 + 2) / 2) and result.mean_rank().queries == 2
    assert result.mean_rank_chance == pytest.approx((5 / 2 + 5 / 3) / 2)
    low, high = result.mean_rank()[1:3]
    assert low <= 2 <= high
    collapsed = block_retrieval(lambda images, texts: 0 * scores[images, texts], pairs)[IMAGE_TO_TEXT]
    assert collapsed.mean_rank().value == pytest.approx(collapsed.mean_rank_chance)
    empty = block_retrieval(lambda images, texts: scores[images, texts], pairs, part=(0, 50))[IMAGE_TO_TEXT]
    assert empty.mean_rank()[1:] == (1.0, 1.0, 0) and math.isnan(empty.mean_rank().value)
    unanswered = ImageTextPairs(torch.tensor([0, 1]), torch.tensor([7, 7, 7, 7]))
    result = block_retrieval(lambda images, texts: scores[images, texts], unanswered)[IMAGE_TO_TEXT]
    assert result.mean_rank()[1:] == (1.0, 4.0, 0)


def test_intervals_know_the_clusters_and_the_confidence():
    # Two images, each there three times; both prefer the first text, which is that of the first image.
    pairs = ImageTextPairs(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1]))
    scores = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    result = block_retrieval(lambda images, texts: scores[images, texts], pairs)[IMAGE_TO_TEXT]
    hit = torch.tensor([1.0, 1, 1, 0, 0, 0])
    for found in (result.estimate(1, 0.5), result.r_precision(0.5)):
        assert found == estimate(hit, pairs.image_id, 0.5)
        assert found not in (estimate(hit, None, 0.5), estimate(hit, pairs.image_id))
    once = bootstrap(2 - hit, pairs.image_id, confidence=0.4)
    assert result.mean_rank(0.4)[1:3] == once
    assert once not in (bootstrap(2 - hit, confidence=0.4), bootstrap(2 - hit, pairs.image_id))


def test_r_precision_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.5, 0.0]])
    pairs = ImageTextPairs(torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1]))
    result = block_retrieval(lambda images, texts: scores[images, texts], pairs)[IMAGE_TO_TEXT]
    # First image: of its two captions one is among the first two. Second: one of three tied is its own, two places: 2/3 of one of two.
    assert result.precision.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert result.r_precision().value == pytest.approx(5 / 12)


def test_r_precision_of_one_positive_is_acc_at_1():
    image, text, pairs = corpus()
    result = embedding_retrieval(image, text, pairs)[TEXT_TO_IMAGE]
    assert torch.equal(result.precision, result.accuracy(1)) and not torch.equal(result.precision, result.accuracy(2))


def test_r_precision_cuts_each_query_at_its_own_number_of_positives():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]])
    pairs = ImageTextPairs(torch.tensor([0, 1]), torch.tensor([0, 1, 0, 0]))
    result = block_retrieval(lambda images, texts: scores[images, texts], pairs)[IMAGE_TO_TEXT]
    assert result.precision.tolist() == pytest.approx([2 / 3, 0.0])


def test_parts_of_the_queries_make_the_whole():
    image, text, pairs = corpus()
    whole = embedding_retrieval(image, text, pairs)
    shares = [embedding_retrieval(image, text, pairs, part=(rank, 5)) for rank in range(5)]
    for direction, result in whole.items():
        assert same(type(result).concatenate((share[direction] for share in shares), len(result.query)), result)
    empty = embedding_retrieval(image, text, pairs, part=(0, 50))[IMAGE_TO_TEXT]
    assert len(empty.query) == 0 and empty.estimate(1).queries == 0 and empty.query.dtype == torch.int64
    assert same(whole[IMAGE_TO_TEXT].gather(), whole[IMAGE_TO_TEXT]) and empty.gather() is empty  # one process


def test_n_way_candidates():
    _, _, pairs = corpus()
    rows = torch.arange(12)
    positives = pairs.texts_of(rows)
    drawn = n_way(positives, rows, 8, seed=1)
    assert drawn.shape == (12, 8)
    assert positives.gather(1, drawn[:, :1]).all() and not positives.gather(1, drawn[:, 1:]).any()
    assert all(len(set(candidates)) == 8 for candidates in drawn.tolist())
    assert torch.equal(drawn[5:7], n_way(positives[5:7], rows[5:7], 8, seed=1))  # chunks change nothing
    assert not torch.equal(drawn, n_way(positives, rows, 8, seed=2))
    assert n_way(positives[:1], rows[:1], 5, seed=0).tolist() == [[0, 25, 27, 18, 9]]  # the same on every machine


def test_n_way_has_no_candidates_for_a_query_without_a_positive():
    positives = torch.tensor([[False, False, False], [True, False, False]])
    drawn = n_way(positives, torch.arange(2), 2, seed=0)
    assert drawn[0].tolist() == [-1, -1] and drawn[1, 0] == 0 and drawn[1, 1] in (1, 2)
    assert n_way(positives[:1], torch.arange(1), 5, seed=0).tolist() == [[-1] * 5]  # nor need it have negatives
    with pytest.raises(ValueError, match="ways must be at least 2, got 1"):
        n_way(positives, torch.arange(2), 1, seed=0)


def test_n_way_draws_evenly():
    positives = torch.zeros(4000, 10, dtype=torch.bool)
    positives[:, 3] = True
    drawn = n_way(positives, torch.arange(4000), 4, seed=0)
    counts = drawn[:, 1:].flatten().bincount(minlength=10).float()
    assert counts[3] == 0
    assert (counts[counts > 0] - 4000 * 3 / 9).abs().max() < 4.5 * (4000 / 3 * 2 / 3) ** 0.5


def test_n_way_retrieval_scores_the_drawn_pairs():
    image, text, pairs = corpus()
    score = ExactDot(image, text).pairs
    found = n_way_retrieval(score, pairs, 4, seed=0, batch_size=5)
    for direction, result in found.items():
        assert result.num_candidates == 4 and result.chance(1) == pytest.approx(0.25)
        assert result.estimate(1).value > embedding_retrieval(image, text, pairs)[direction].estimate(1).value
    constant = n_way_retrieval(lambda images, texts: torch.zeros(len(images)), pairs, 4)
    assert constant[IMAGE_TO_TEXT].estimate(1).value == pytest.approx(0.25)
    # All candidates of a text are images: with as many ways as images this is full retrieval.
    full = n_way_retrieval(score, pairs, 12)[TEXT_TO_IMAGE]
    assert torch.equal(full.accuracy(3), embedding_retrieval(image, text, pairs)[TEXT_TO_IMAGE].accuracy(3))


def test_n_way_parts_make_the_whole():
    image, text, pairs = corpus()
    score = ExactDot(image, text).pairs
    whole = n_way_retrieval(score, pairs, 4)[IMAGE_TO_TEXT]
    parts = [n_way_retrieval(score, pairs, 4, part=(rank, 2))[IMAGE_TO_TEXT] for rank in range(2)]
    assert same(type(whole).concatenate(parts, 12), whole)


def test_n_way_needs_enough_negatives():
    _, _, pairs = corpus()
    with pytest.raises(ValueError, match="13-way matching needs 12 negatives, a query has 11"):
        n_way_retrieval(lambda images, texts: torch.zeros(len(images)), pairs, 13)

import pytest
import torch

from crossvit.metrics import (
    ExactDot,
    ImageTextPairs,
    block_retrieval,
    embedding_retrieval,
    estimate,
    reranked_retrieval,
)
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE


def corpus(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(9, 6, generator=generator), torch.randn(18, 6, generator=generator)
    fused = torch.randint(0, 5, (9, 18), generator=generator).float()  # with ties
    return image, text, ImageTextPairs(torch.arange(9), torch.arange(18) // 2), fused


def test_keeping_everything_is_full_scoring():
    image, text, pairs, fused = corpus()
    fused[2, 3] = float("nan")
    full = block_retrieval(lambda images, texts: fused[images, texts], pairs)
    for top in (18, 100):
        found = reranked_retrieval(ExactDot(image, text), lambda i, t: fused[i, t], pairs, top, batch_size=7)
        for direction, result in found.items():
            for name in ("greater", "tied", "matched", "precision", "nan"):
                assert torch.equal(getattr(result, name), getattr(full[direction], name)), name
            assert result.recall_ceiling().value == 1.0


def test_a_constant_second_score_leaves_ties_among_the_shortlist_only():
    image, text, pairs, _ = corpus()
    first = embedding_retrieval(image, text, pairs)[TEXT_TO_IMAGE]
    found = reranked_retrieval(ExactDot(image, text), lambda i, t: torch.zeros(len(i)), pairs, 3)[TEXT_TO_IMAGE]
    reachable = first.greater < 3
    assert torch.equal(found.reachable, reachable)
    assert found.accuracy(1)[reachable].tolist() == pytest.approx([1 / 3] * int(reachable.sum()))
    # A positive outside the shortlist keeps its place.
    assert torch.equal(found.greater[~reachable], first.greater[~reachable])
    assert found.recall_ceiling().value == pytest.approx(reachable.double().mean().item())


def test_a_perfect_second_score_reaches_the_ceiling_and_no_more():
    image, text, pairs, _ = corpus()
    found = reranked_retrieval(ExactDot(image, text), lambda i, t: (t // 2 == i).float(), pairs, 4)
    for result in found.values():
        assert 0 < result.recall_ceiling().value < 1
        assert result.estimate(1).value == pytest.approx(result.recall_ceiling().value)


def test_ties_at_the_cut_are_all_kept():
    image = torch.tensor([[1.0, 0.0]])
    text = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.0]])
    pairs = ImageTextPairs(torch.tensor([0]), torch.tensor([9, 9, 9, 0, 9]))
    seen = []

    def fused(images, texts):
        seen.extend(texts.tolist())
        return texts.float()

    result = reranked_retrieval(ExactDot(image, text), fused, pairs, 2)[IMAGE_TO_TEXT]
    assert sorted(seen[:4]) == [0, 1, 2, 3] and result.shortlist.tolist() == [4]
    assert result.greater.tolist() == [0] and result.recall_ceiling().value == 1.0


def test_large_scores_of_the_first_stage_stay_below_the_second():
    image, text, pairs, fused = corpus()
    plain = reranked_retrieval(lambda i, t: image[i] @ text[t].T, lambda i, t: fused[i, t], pairs, 5)
    scaled = reranked_retrieval(lambda i, t: 1e30 * (image[i] @ text[t].T), lambda i, t: 1e-6 * fused[i, t], pairs, 5)
    for direction, result in plain.items():
        assert torch.equal(result.greater, scaled[direction].greater)


def test_parts_make_the_whole_and_misuse_is_named():
    image, text, pairs, fused = corpus()

    def score(images, texts):
        return fused[images, texts]

    whole = reranked_retrieval(ExactDot(image, text), score, pairs, 4)[IMAGE_TO_TEXT]
    parts = [
        reranked_retrieval(ExactDot(image, text), score, pairs, 4, part=(rank, 2))[IMAGE_TO_TEXT] for rank in range(2)
    ]
    joined = type(whole).concatenate(parts, 9)
    assert all(torch.equal(getattr(whole, name), getattr(joined, name)) for name in vars(whole))
    with pytest.raises(ValueError, match="top"):
        reranked_retrieval(ExactDot(image, text), score, pairs, 0)


def test_a_shortlist_of_one_is_the_first_score():
    image, text, pairs, fused = corpus()
    found = reranked_retrieval(ExactDot(image, text), lambda i, t: fused[i, t], pairs, 1)
    for direction, first in embedding_retrieval(image, text, pairs).items():
        assert torch.equal(found[direction].greater, first.greater)


def test_the_interval_of_the_ceiling_knows_the_clusters_and_the_confidence():
    pairs = ImageTextPairs(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1]))
    scores = torch.tensor([[1.0, 0.0]]).repeat(6, 1)
    result = reranked_retrieval(
        lambda images, texts: scores[images, texts], lambda images, texts: scores[images, texts], pairs, 1
    )[IMAGE_TO_TEXT]
    hit = torch.tensor([1.0, 1, 1, 0, 0, 0])
    assert result.recall_ceiling(0.5) == estimate(hit, pairs.image_id, 0.5)
    assert result.recall_ceiling(0.5) not in (estimate(hit, None, 0.5), estimate(hit, pairs.image_id))

"""Image-text retrieval in both directions, in flat memory: counts are taken block by block, and no (I, T) matrix is ever held.

A corpus is a `crossvit.metrics.pairs.ImageTextPairs`; every function returns {"image->text": RetrievalResult, "text->image": ...}.
`part=(rank, world_size)` ranks one share of the queries only; `RetrievalResult.gather` joins the shares.
"""

import torch
from torch import Tensor

from crossvit.metrics.exact_dot import ExactDot
from crossvit.metrics.n_way import n_way
from crossvit.metrics.pairs import BlockScore, ImageTextPairs, PairScore, Side
from crossvit.metrics.ranking import count_block, query_chunks, score_blocks, score_pairs, share
from crossvit.metrics.result import RetrievalResult


def embedding_retrieval(
    images: Tensor, texts: Tensor, pairs: ImageTextPairs, *, part: tuple[int, int] = (0, 1)
) -> dict[str, RetrievalResult]:
    """All candidates ranked by the dot product of embeddings, (I, E) and (T, E), usually L2-normalised, on any one device.

    Products are exact (see `ExactDot`): chunks, world size and device change no count, and equal embeddings tie exactly.
    """
    if (len(images), len(texts)) != (pairs.num_images, pairs.num_texts):
        raise ValueError(
            f"{len(images)} image and {len(texts)} text embeddings "
            f"for {pairs.num_images} images and {pairs.num_texts} texts"
        )
    return block_retrieval(ExactDot(images, texts), pairs, part=part)


def block_retrieval(
    score: BlockScore,
    pairs: ImageTextPairs,
    *,
    part: tuple[int, int] = (0, 1),
    chunk: tuple[int | None, int | None] = (None, None),
) -> dict[str, RetrievalResult]:
    """All candidates ranked by a score function.

    Args:
        score: (image slice, text slice) -> (i, t) scores, higher is better.
        chunk: the largest (queries, candidates) block asked for; None: every candidate, and as many queries as fit `ranking.BLOCK`.

    Raises:
        ValueError: `score` returns another shape than asked for.
    """

    def ranked(side: Side) -> RetrievalResult:
        queries = share(len(side.cluster), part)
        blocks = score_blocks(side.block(score), queries, side.num_candidates, chunk)
        found = (count_block(scores, side.positives_of(rows), rows, side.cluster) for rows, scores in blocks)
        return RetrievalResult.concatenate(found, len(queries))

    return {direction: ranked(side) for direction, side in pairs.sides.items()}


def n_way_retrieval(
    score: PairScore,
    pairs: ImageTextPairs,
    ways: int,
    seed: int = 0,
    *,
    part: tuple[int, int] = (0, 1),
    batch_size: int = 256,
) -> dict[str, RetrievalResult]:
    """Each query against one of its positives and `ways - 1` drawn distractors, none of them a positive.

    The draw depends on the seed and the rows alone, so every model meets the same candidates.

    Args:
        score: (image rows (p,), text rows (p,)) -> (p,), at most `batch_size` pairs a call; `ExactDot(...).pairs` scores embeddings.

    Raises:
        ValueError: ways < 2, or a query has fewer than `ways - 1` negatives.
    """

    def drawn(side: Side, rows: Tensor) -> RetrievalResult:
        candidates = n_way(side.positives_of(rows), rows, ways, seed)
        answerable = candidates[:, 0] >= 0
        queries = rows[answerable].repeat_interleave(ways)
        found = score_pairs(side.pair(score), queries, candidates[answerable].flatten(), batch_size)
        scores = found.new_zeros(len(rows), ways)
        scores[answerable] = found.view(-1, ways)
        positives = torch.zeros(len(rows), ways, dtype=torch.bool)
        positives[:, 0] = answerable
        return count_block(scores, positives, rows, side.cluster)

    def ranked(side: Side) -> RetrievalResult:
        queries = share(len(side.cluster), part)
        chunks = query_chunks(queries, side.num_candidates)
        found = (drawn(side, torch.arange(rows.start, rows.stop)) for rows in chunks)
        return RetrievalResult.concatenate(found, len(queries))

    return {direction: ranked(side) for direction, side in pairs.sides.items()}

"""The blocks a ranking is made of: which queries at a time, their scores, and the counts taken from them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from crossvit.metrics.accuracy import count_true, hit_probability, nan_last, rank_counts
from crossvit.metrics.pairs import BlockScore, PairScore
from crossvit.metrics.precision import precision_at_k
from crossvit.metrics.result import RetrievalResult

BLOCK = 2**22  # scores held at a time


def share(num_queries: int, part: tuple[int, int]) -> range:
    """The queries of one part (rank, world_size): parts are contiguous and differ by at most one query."""
    rank, world_size = part
    if not 0 <= rank < world_size:
        raise ValueError(f"part must be (rank, world_size) with 0 <= rank < world_size, got {part}")
    return range(num_queries * rank // world_size, num_queries * (rank + 1) // world_size)


def query_chunks(queries: range, num_candidates: int, size: int | None = None) -> Iterator[slice]:
    """Slices over the queries, `size` long or as long as `BLOCK` scores allow."""
    size = max(1, BLOCK // num_candidates) if size is None else size
    for first in range(queries.start, queries.stop, size):
        yield slice(first, min(first + size, queries.stop))


def score_blocks(
    score: BlockScore,
    queries: range,
    num_candidates: int,
    chunk: tuple[int | None, int | None] = (None, None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (query rows (q,), scores (q, num_candidates)); `score` is asked for blocks of at most `chunk` (queries, candidates)."""
    step = chunk[1] or num_candidates
    for rows in query_chunks(queries, num_candidates, chunk[0]):
        blocks = []
        for start in range(0, num_candidates, step):
            columns = slice(start, min(start + step, num_candidates))
            block = score(rows, columns)
            expected = (rows.stop - rows.start, columns.stop - columns.start)
            if block.shape != expected:
                raise ValueError(f"score returned {tuple(block.shape)} for a block of {expected}")
            blocks.append(block)
        yield torch.arange(rows.start, rows.stop), torch.cat(blocks, 1)


def score_pairs(score: PairScore, queries: Tensor, candidates: Tensor, batch_size: int) -> Tensor:
    """Scores (P,) of listed pairs, at most `batch_size` a call, on the CPU and in at least float32."""
    batches = [torch.zeros(0)]
    for pair in zip(queries.split(batch_size), candidates.split(batch_size), strict=True):
        if len(pair[0]):
            batch = score(*pair)
            if batch.shape != pair[0].shape:
                raise ValueError(f"score returned {tuple(batch.shape)} for {len(pair[0])} pairs")
            batches.append(batch.cpu())
    return torch.cat(batches)


def count_block(scores: Tensor, positives: Tensor, rows: Tensor, cluster: Tensor) -> RetrievalResult:
    """The counts of one block: scores (q, C) on any device, positives (q, C) bool, the rows (q,) it covers, all queries' clusters (Q,)."""
    scores, nan = nan_last(scores)
    mask = positives.to(scores.device)
    greater, tied, matched = rank_counts(scores, mask)
    wanted = count_true(mask)
    if wanted.max() <= 1:  # of one positive the share found is the chance that it comes first
        precision = hit_probability(greater, tied, matched, 1)
    else:
        precision = precision_at_k(scores, mask, wanted)
    return RetrievalResult(
        query=rows,
        cluster=cluster[rows],
        greater=greater.cpu(),
        tied=tied.cpu(),
        matched=matched.cpu(),
        positives=wanted.cpu(),
        candidates=torch.full_like(rows, scores.shape[1]),
        precision=precision.cpu(),
        nan=nan.cpu(),
    )

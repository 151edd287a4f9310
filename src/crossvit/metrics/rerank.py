"""Re-ranking of a cheap score's best candidates by a dear one, as ALBEF evaluates (Li et al. 2021, section 4.2).

The shortlist is exactly what the first score justifies: all candidates that tie at the cut are in, and a positive that did not make it
is not put in by hand. Candidates outside keep their order below the shortlist.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from crossvit.metrics.accuracy import nan_last
from crossvit.metrics.intervals import Estimate, estimate
from crossvit.metrics.pairs import BlockScore, ImageTextPairs, PairScore, Side
from crossvit.metrics.ranking import count_block, score_blocks, score_pairs, share
from crossvit.metrics.result import RetrievalResult


@dataclass(frozen=True)
class RerankedResult(RetrievalResult):
    """A retrieval result that knows what its shortlist allowed."""

    shortlist: Tensor  # (Q,) int64, candidates scored again
    reachable: Tensor  # (Q,) bool, a positive is among them

    def recall_ceiling(self, confidence: float = 0.95) -> Estimate:
        """Share of queries with a positive in the shortlist: the Acc@1 of a perfect second score."""
        return estimate(self.reachable[self.answerable], self.cluster[self.answerable], confidence)


def reranked_retrieval(
    first: BlockScore,
    fused: PairScore,
    pairs: ImageTextPairs,
    top: int,
    *,
    part: tuple[int, int] = (0, 1),
    batch_size: int = 256,
) -> dict[str, RerankedResult]:
    """Both directions, all candidates: the `top` best by `first` ordered by `fused`, the rest below by `first`.

    With `top` = number of candidates the counts are those of `fused` alone. A collapsed `first` ties everywhere, so everything is scored.

    Args:
        first: (image slice, text slice) -> (i, t); `ExactDot(images, texts)` for embeddings.
        fused: (image rows (p,), text rows (p,)) -> (p,), at most `batch_size` pairs a call, in order of the query.
        top: candidates kept for each query, at least 1, before ties.

    Returns:
        {"image->text": ..., "text->image": ...}; `num_candidates` is that of the whole corpus.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")

    def reranked(side: Side) -> RerankedResult:
        queries = share(len(side.cluster), part)
        blocks = score_blocks(side.block(first), queries, side.num_candidates)
        score = side.pair(fused)
        found = (_rerank_block(scores, side, rows, score, top, batch_size) for rows, scores in blocks)
        return RerankedResult.concatenate(found, len(queries))

    return {direction: reranked(side) for direction, side in pairs.sides.items()}


def _rerank_block(
    scores: Tensor, side: Side, rows: Tensor, fused: PairScore, top: int, batch_size: int
) -> RerankedResult:
    scores, first_nan = nan_last(scores.cpu())
    cut = scores.topk(min(top, scores.shape[1]), dim=1).values[:, -1:]
    shortlist = scores >= cut
    query, candidate = shortlist.nonzero(as_tuple=True)
    second, second_nan = nan_last(score_pairs(fused, rows[query], candidate, batch_size)[:, None])
    order = scores.double()
    order[shortlist] = _above(order.masked_fill(shortlist, -torch.inf).amax().item(), second.squeeze(1))
    positives = side.positives_of(rows)
    counts = count_block(order, positives, rows, side.cluster)
    values = {field.name: getattr(counts, field.name) for field in fields(counts)}
    values["nan"] = first_nan.index_add(0, query, second_nan)
    return RerankedResult(
        **values,
        shortlist=shortlist.sum(1),
        reachable=(shortlist & positives).any(1),
    )


def _above(floor: float, scores: Tensor) -> Tensor:
    """Numbers in the order and with the ties of `scores` (p,), all greater than `floor`: float64, whatever the scale of either."""
    places = scores.unique(return_inverse=True)[1].double()
    base = 2.0 ** (math.floor(math.log2(max(floor, 1.0))) + 1)
    # A power of two times 1 + place / 2^30 is exact, so no two places meet.
    return base * (1 + places * 2.0**-30)

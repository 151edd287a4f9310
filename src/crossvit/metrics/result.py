"""What a retrieval run found: for each query the place of its best positive, from which Acc@k follows for any k."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from crossvit.metrics.accuracy import chance_at_k, hit_bounds, hit_probability
from crossvit.metrics.gather import gather_rows
from crossvit.metrics.intervals import Estimate, bootstrap, estimate

TIE_WARNING = 0.001  # Acc@k moved by ties by more than this is worth a remark.


@dataclass(frozen=True)
class RetrievalResult:
    """Counts of one direction, one entry a query, all (Q,) on the CPU. A hit is any positive among the first k (any-positive)."""

    query: Tensor  # int64, row of the query
    cluster: Tensor  # int64, the image the query belongs to; captions of one image are not independent
    greater: Tensor  # int64, negatives above the best positive
    tied: Tensor  # int64, negatives equal to it
    matched: Tensor  # int64, positives equal to it; 0 where the query has no positive
    positives: Tensor  # int64, positives among the candidates
    candidates: Tensor  # int64
    precision: Tensor  # float64, R-precision
    nan: Tensor  # int64, NaN among the scores, ranked last

    @property
    def answerable(self) -> Tensor:
        """(Q,) bool: queries with a positive. The others (their image was damaged, say) stay out of every figure."""
        return self.matched > 0

    def accuracy(self, k: int) -> Tensor:
        """Expected Acc@k of each answerable query, (Q',) float64."""
        return hit_probability(self.greater, self.tied, self.matched, k)[self.answerable]

    def bounds(self, k: int) -> tuple[float, float]:
        """Mean (pessimistic, optimistic) Acc@k."""
        worst, best = hit_bounds(self.greater, self.tied, self.matched, k)
        return worst[self.answerable].double().mean().item(), best[self.answerable].double().mean().item()

    def estimate(self, k: int, confidence: float = 0.95) -> Estimate:
        """Mean Acc@k with an interval that knows which queries share an image."""
        return estimate(self.accuracy(k), self.cluster[self.answerable], confidence)

    def r_precision(self, confidence: float = 0.95) -> Estimate:
        """Mean share of positives among the first R, R being how many positives the query has; ties by expectation."""
        return estimate(self.precision[self.answerable], self.cluster[self.answerable], confidence)

    @property
    def r_precision_chance(self) -> float:
        """R-precision of a random ranking: the mean share of positives among the candidates."""
        return (self.positives / self.candidates)[self.answerable].double().mean().item()

    def mean_rank(self, confidence: float = 0.95) -> Estimate:
        """Mean place of the best positive, counted from 1, by expectation under ties; a bootstrap interval over clusters. No fraction."""
        rank = (1 + self.greater + self.tied / (self.matched + 1).double())[self.answerable]
        if not len(rank):
            return Estimate(float("nan"), 1.0, float(max(1, self.num_candidates)), 0)
        mean = rank.mean().item()
        low, high = bootstrap(rank, self.cluster[self.answerable], confidence=confidence)
        return Estimate(mean, min(low, mean), max(high, mean), len(rank))

    @property
    def mean_rank_chance(self) -> float:
        """Mean place of the best of P positives in a random order of N candidates: (N + 1) / (P + 1)."""
        return ((self.candidates + 1) / (self.positives + 1).double())[self.answerable].mean().item()

    def chance(self, k: int) -> float:
        """Mean Acc@k of a random ranking of the same candidates."""
        chance = chance_at_k(self.candidates, self.positives, k)
        return chance[self.answerable].mean().item()

    @property
    def num_candidates(self) -> int:
        """N, the same for every query."""
        return int(self.candidates.max()) if len(self.candidates) else 0

    def remarks(self, k: int = 1) -> list[str]:
        """What a reader must know before believing Acc@k: NaN scores, ties that move it, queries without an answer."""
        found = []
        if total := int(self.nan.sum()):
            found.append(f"{total} scores are NaN and were ranked last")
        if lost := int((~self.answerable).sum()):
            found.append(f"{lost} of {len(self.query)} queries have no positive among the candidates and were left out")
        if self.answerable.any():
            worst, best = self.bounds(k)
            if best - worst > TIE_WARNING:
                found.append(f"ties decide Acc@{k}: between {worst:.1%} and {best:.1%}, reported by expectation")
        return found

    def gather(self) -> Self:
        """The result over all ranks when each has ranked its part of the queries; a collective call."""
        names = [field.name for field in fields(self)]
        rows = {name: getattr(self, name) for name in names} | {"index": self.query} if len(self.query) else {}
        rows = gather_rows(rows)
        return type(self)(**{name: rows[name] for name in names}) if rows else self

    @classmethod
    def concatenate(cls, parts: Iterable[Self], size: int) -> Self:
        """Results of consecutive queries, `size` in all, as one.

        They are copied as they come: small tensors that stay behind between the large blocks of a long evaluation would fragment the
        heap, which then grows by gigabytes.
        """
        names = [field.name for field in fields(cls)]
        columns = {name: torch.zeros(size, dtype=torch.int64) for name in names}
        start = 0
        for part in parts:
            if start == 0:
                columns = {name: torch.empty(size, dtype=getattr(part, name).dtype) for name in names}
            stop = start + len(part.query)
            for name, column in columns.items():
                column[start:stop] = getattr(part, name)
            start = stop
        return cls(**columns)

"""Image-text matching as retrieval: which caption belongs to a picture, and which picture to a caption."""

import logging

import torch
from torch import Tensor

from crossvit.data.reading.annotations import text_id
from crossvit.errors import UserError
from crossvit.evaluation.subject import PAIRS_PER_CALL, Corpus, Measurement, Subject, encode_corpus, take
from crossvit.metrics import (
    ImageTextPairs,
    RerankedResult,
    RetrievalResult,
    embedding_retrieval,
    n_way_retrieval,
    reranked_retrieval,
)
from crossvit.metrics.exact_dot import ExactDot
from crossvit.metrics.pairs import PairScore

log = logging.getLogger(__name__)


class Matching:
    """Retrieval in both directions by the dual encoder, and by the fused scorer where the chain has trained it.

    candidates: N for N-way matching (distractors drawn once by `seed`), or None for all of the split.
    rerank: K; among all candidates the fused scorer re-orders the dual encoder's first K, among N it scores all. `ceiling@K` is the Acc@1
        that a perfect re-ordering would have.
    with_dual: also measure the sum of both scores, `vqcmi_sum` beside `vqcmi_fused` (BLIP re-ranks so, Li et al. 2022). A matching head
        that learned on negatives drawn by the dual encoder's softmax gives the logarithm of what that softmax is wrong by, so the sum
        of its logit difference and the scaled cosine is the score that the two have learned together.
    """

    def __init__(
        self,
        data,
        split: str = "val",
        task: str = "vqcmi",
        candidates: int | None = None,
        rerank: int = 16,
        seed: int = 0,
        with_dual: bool = False,
    ):
        self.data = data
        self.split = split
        self.task = task
        self.candidates = candidates
        most = candidates if candidates is None else min(map(most_candidates, self.forms(data, split)))
        if candidates is not None and not 2 <= candidates <= most:
            raise UserError(f"candidates={candidates}: {split} has distractors for 2 to {most}; null takes all of it")
        if isinstance(rerank, bool) or not isinstance(rerank, int) or rerank < 1:
            raise UserError(f"rerank={rerank}: give how many of the first candidates are ordered anew, at least 1")
        self.rerank = rerank
        self.seed = seed
        self.splits = (split,)
        self.with_dual = with_dual

    @staticmethod
    def forms(data, split: str) -> list[ImageTextPairs]:
        """What is ranked of a split, before anything of it is read."""
        images, captions = data.images(split), data.captions(split)
        return [
            ImageTextPairs(
                torch.tensor([image_id for image_id, _ in images]),
                torch.tensor([image_id for _, image_id, _ in captions]),
                torch.tensor([text_id(text) for _, _, text in captions]),
            )
        ]

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        return [
            measurement
            for task, directions in self.rankings(subject, encode_corpus(subject, self.data, self.split)).items()
            for direction, result in directions.items()
            for measurement in self._figures(task, direction, result)
        ]

    def rankings(self, subject: Subject, corpus: Corpus) -> dict[str, dict[str, RetrievalResult]]:
        """{task: {direction: what was found}} of the dual encoder and, where they are trained, of the other scores."""
        pairs = ImageTextPairs(corpus.image_id, corpus.text_image_id, corpus.text_id)
        if self.candidates is not None and self.candidates > (most := most_candidates(pairs)):
            raise UserError(
                f"candidates={self.candidates}: what could be read of {self.split} has distractors for {most}"
            )
        found = {self.task: self._dual(corpus, pairs)}
        if subject.scores_fused:
            fused = _fused_score(subject, corpus)
            fused = _kept(fused) if self.with_dual else fused
            found[f"{self.task}_fused"] = self._ordered(fused, corpus, pairs)
            if self.with_dual:
                found[f"{self.task}_sum"] = self._ordered(_with_dual(fused, subject, corpus), corpus, pairs)
        return found

    def _figures(self, task: str, direction: str, result: RetrievalResult) -> list[Measurement]:
        """Acc@k by any positive; R-precision, which wants all of them, where there are several; what the shortlist leaves to reach."""
        for remark in result.remarks():
            log.warning("%s, %s: %s", task, direction, remark)
        count = result.num_candidates
        found = [
            Measurement(task, direction, f"Acc@{k}", result.estimate(k), count, result.chance(k)) for k in (1, 5, 10)
        ]
        if result.positives.max() > 1:
            found.append(
                Measurement(task, direction, "R-precision", result.r_precision(), count, result.r_precision_chance)
            )
        if isinstance(result, RerankedResult):
            found.append(Measurement(task, direction, f"ceiling@{self.rerank}", result.recall_ceiling(), count, None))
        return found

    def _dual(self, corpus: Corpus, pairs: ImageTextPairs) -> dict:
        if self.candidates is None:
            return embedding_retrieval(corpus.image, corpus.caption, pairs)
        return n_way_retrieval(ExactDot(corpus.image, corpus.caption).pairs, pairs, self.candidates, self.seed)

    def _ordered(self, score: PairScore, corpus: Corpus, pairs: ImageTextPairs) -> dict:
        if self.candidates is not None:
            return n_way_retrieval(score, pairs, self.candidates, self.seed, batch_size=PAIRS_PER_CALL)
        return reranked_retrieval(
            ExactDot(corpus.image, corpus.caption), score, pairs, self.rerank, batch_size=PAIRS_PER_CALL
        )


def most_candidates(pairs: ImageTextPairs) -> int:
    """The largest N of N-way matching: one more than the query with the fewest negatives, of either direction, has of them."""
    negatives = [
        side.num_candidates - int(side.positives_of(rows).sum(1).max())
        for side in pairs.sides.values()
        for rows in torch.arange(len(side.cluster)).split(256)
    ]
    return 1 + min(negatives)


def _fused_score(subject: Subject, corpus: Corpus) -> PairScore:
    def score(images: Tensor, texts: Tensor) -> Tensor:
        visual = corpus.visual[images.to(corpus.visual.device)]
        return subject.model.match_score(visual, take(corpus.text, texts.to(visual.device)))

    return score


def _with_dual(fused: PairScore, subject: Subject, corpus: Corpus) -> PairScore:
    scale = subject.model.logit_scale.exp()

    def score(images: Tensor, texts: Tensor) -> Tensor:
        image, caption = (x[rows.to(x.device)] for x, rows in ((corpus.image, images), (corpus.caption, texts)))
        return fused(images, texts) + scale * (image * caption).sum(dim=1)

    return score


def _kept(score: PairScore) -> PairScore:
    """The same score, which computes what it was asked before once: rankings by it and by the sum ask for the same pairs."""
    answers: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def answer(images: Tensor, texts: Tensor) -> Tensor:
        key = tuple(images.tolist()), tuple(texts.tolist())
        if key not in answers:
            answers[key] = score(images, texts)
        return answers[key]

    return answer

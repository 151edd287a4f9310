"""Image-text matching as retrieval: which caption belongs to a picture, and which picture to a caption."""

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.subject import PAIRS_PER_CALL, Corpus, Measurement, Subject, encode_corpus, take
from crossvit.metrics import ImageTextPairs, embedding_retrieval, n_way_retrieval, reranked_retrieval
from crossvit.metrics.exact_dot import ExactDot


class Matching:
    """Retrieval in both directions by the dual encoder, and by the fused scorer where the chain has trained it.

    candidates: N for N-way matching (distractors drawn once by `seed`), or None for all of the split.
    rerank: K; among all candidates the fused scorer re-orders the dual encoder's first K, among N it scores all.
    """

    def __init__(
        self,
        data,
        split: str = "val",
        task: str = "vqcmi",
        candidates: int | None = None,
        rerank: int = 16,
        seed: int = 0,
    ):
        self.data = data
        self.split = split
        self.task = task
        self.candidates = candidates
        if candidates is not None and not 2 <= candidates <= (pictures := len(data.images(split))):
            raise UserError(
                f"candidates={candidates}: give 2 to {pictures}, the pictures of {split}, or null for all of them"
            )
        self.rerank = rerank
        self.seed = seed

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        corpus = encode_corpus(subject, self.data, self.split)
        pairs = ImageTextPairs(corpus.image_id, corpus.text_image_id, corpus.text_id)
        found = {self.task: self._dual(corpus, pairs)}
        if subject.scores_fused:
            found[f"{self.task}_fused"] = self._fused(subject, corpus, pairs)
        return [
            Measurement(task, direction, f"Acc@{k}", result.estimate(k), result.num_candidates, result.chance(k))
            for task, directions in found.items()
            for direction, result in directions.items()
            for k in (1, 5, 10)
        ]

    def _dual(self, corpus: Corpus, pairs: ImageTextPairs) -> dict:
        if self.candidates is None:
            return embedding_retrieval(corpus.image, corpus.caption, pairs)
        return n_way_retrieval(ExactDot(corpus.image, corpus.caption).pairs, pairs, self.candidates, self.seed)

    def _fused(self, subject: Subject, corpus: Corpus, pairs: ImageTextPairs) -> dict:
        def score(images: Tensor, texts: Tensor) -> Tensor:
            visual = corpus.visual[images.to(corpus.visual.device)]
            return subject.model.match_score(visual, take(corpus.text, texts.to(visual.device)))

        if self.candidates is not None:
            return n_way_retrieval(score, pairs, self.candidates, self.seed, batch_size=PAIRS_PER_CALL)
        return reranked_retrieval(
            ExactDot(corpus.image, corpus.caption), score, pairs, self.rerank, batch_size=PAIRS_PER_CALL
        )

"""Does the model prefer a picture's caption to a twin that differs in one attribute, object or relation?"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from crossvit.data.coco import COCODataModule, Twin
from crossvit.errors import UserError
from crossvit.evaluation.subject import PAIRS_PER_CALL, Measurement, Subject, encode_pictures
from crossvit.metrics import by_kind, caption_plausibility, two_way_accuracy

_WORD = re.compile(r"\w+|[^\w\s]")


class Twins:
    """Two-way accuracy for each kind of twin, by the dual encoder and, where the chain has trained it, by the fused scorer.

    blind: also by a text-only baseline, which prefers the caption whose length and words the training captions make likelier. An image-only
    baseline would be at 50 % by construction: both captions belong to one picture. It stands in the rows of models that read.
    """

    def __init__(self, data, split: str = "val", task: str = "twins", blind: bool = False) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.blind = blind
        reads_training = blind and isinstance(data, COCODataModule)
        self.splits = (split, "train") if reads_training else (split,)
        if not data.twins(split):
            raise UserError(f"split={split} holds no caption with a false twin")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        model, device = subject.model, subject.device
        visual, image, row = encode_pictures(subject, self.data, self.split)
        twins = [twin for twin in self.data.twins(self.split) if twin.image_id in row]
        right: dict[str, list[Tensor]] = {}
        for start in range(0, len(twins), PAIRS_PER_CALL):
            part = twins[start : start + PAIRS_PER_CALL]
            rows = torch.tensor([row[twin.image_id] for twin in part], device=device)
            texts = [
                model.text_features(*(x.to(device) for x in self.data.tokenizer.encode(captions)))
                for captions in ([twin.caption for twin in part], [twin.negative for twin in part])
            ]
            scores = {self.task: [(image[rows] * model.embed_text(text)).sum(1) for text in texts]}
            if subject.scores_fused:
                scores[f"{self.task}_fused"] = [model.match_score(visual[rows], text) for text in texts]
            for task, (true, false) in scores.items():
                right.setdefault(task, []).append(two_way_accuracy(true.float().cpu(), false.float().cpu()))
        if self.blind and subject.scores_dual:
            right[f"{self.task}_blind"] = [self._blind(twins)]
        clusters = torch.tensor([row[twin.image_id] for twin in twins])
        kinds = [twin.kind for twin in twins]
        return [
            Measurement(task, None, kind, estimate, 2, 0.5)
            for task, parts in right.items()
            for kind, estimate in by_kind(torch.cat(parts), kinds, clusters).items()
        ]

    def _blind(self, twins: list[Twin]) -> Tensor:
        training = _words(self.data.training_texts())
        texts = _words(text for twin in twins for text in (twin.caption, twin.negative))
        scores = caption_plausibility(training, texts)
        return two_way_accuracy(scores[0::2], scores[1::2])


def _words(texts: Iterable[str]) -> Iterable[list[str]]:
    return (_WORD.findall(text.lower()) for text in texts)

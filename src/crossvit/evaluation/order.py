"""Does the model find the caption among shuffled ones?"""

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.subject import PAIRS_PER_CALL, Measurement, Subject, encode_pictures
from crossvit.metrics import accuracy_at_k, estimate


class Order:
    """Acc@1 of a caption among itself and shuffled ones, ties by expectation, by the dual encoder and by the fused scorer.

    The data is one with `choices` (OrderDataModule). Captions of one picture are not independent: the interval counts pictures.
    """

    def __init__(self, data, split: str = "test", task: str = "aro_order") -> None:
        self.data = data
        self.split = split
        self.task = task
        self.splits = (split,)
        if not hasattr(data, "choices"):
            raise UserError(f"{type(data).__name__} holds no shuffled captions: choose e.g. data=aro_order_coco")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not (subject.scores_dual or subject.scores_fused):
            return []
        model, device = subject.model, subject.device
        visual, image, row = encode_pictures(subject, self.data, self.split)
        choices = [choice for choice in self.data.choices(self.split) if choice.image_id in row]
        options = 1 + len(choices[0].false)
        scores: dict[str, list[Tensor]] = {}
        step = max(1, PAIRS_PER_CALL // options)
        for part in (choices[start : start + step] for start in range(0, len(choices), step)):
            rows = torch.tensor([row[choice.image_id] for choice in part], device=device).repeat_interleave(options)
            texts = [text for choice in part for text in (choice.caption, *choice.false)]
            text = model.text_features(*(x.to(device) for x in self.data.tokenizer.encode(texts)))
            if subject.scores_dual:
                found = (image[rows] * model.embed_text(text)).sum(1)
                scores.setdefault(self.task, []).append(found.view(-1, options).float().cpu())
            if subject.scores_fused:
                found = model.match_score(visual[rows], text)
                scores.setdefault(f"{self.task}_fused", []).append(found.view(-1, options).float().cpu())
        clusters = torch.tensor([row[choice.image_id] for choice in choices])
        measured = []
        for task, parts in scores.items():
            all_scores = torch.cat(parts)
            first = torch.arange(options).eq(0).expand_as(all_scores)
            right = accuracy_at_k(all_scores, first, 1)
            measured.append(Measurement(task, None, "Acc@1", estimate(right, clusters), options, 1 / options))
        return measured

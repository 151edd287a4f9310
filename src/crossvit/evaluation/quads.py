"""Two captions by two pictures, as in Winoground: does each caption go with its own picture?"""

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.subject import PAIRS_PER_CALL, Measurement, Subject, encode_pictures
from crossvit.metrics import estimate, quad_accuracy
from crossvit.metrics.compositional import QUAD_CHANCE


class Quads:
    """Winoground's text, image and group score, by the dual encoder and by the fused scorer, each where the chain has trained it.

    The data is one of statements with `quads` (Winoground, or VSR of the embedded corpus).
    """

    def __init__(self, data, split: str = "test", task: str = "winoground") -> None:
        self.data = data
        self.split = split
        self.task = task
        self.splits = (split,)
        if not data.quads(split):
            raise UserError(f"split={split} holds no two captions by two pictures")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if not (subject.scores_dual or subject.scores_fused):
            return []
        model, device = subject.model, subject.device
        visual, image, row = encode_pictures(subject, self.data, self.split)
        quads = [quad for quad in self.data.quads(self.split) if row.keys() >= set(quad.pictures)]
        scores: dict[str, list[Tensor]] = {}
        for start in range(0, len(quads), PAIRS_PER_CALL // 4):
            part = quads[start : start + PAIRS_PER_CALL // 4]
            rows = torch.tensor([[row[p] for p in quad.pictures] for quad in part], device=device)
            texts = [caption for quad in part for caption in quad.captions]
            text = model.text_features(*(x.to(device) for x in self.data.tokenizer.encode(texts)))
            if subject.scores_dual:
                pairs = image[rows] @ model.embed_text(text).unflatten(0, (len(part), 2)).mT
                scores.setdefault(self.task, []).append(pairs)
            if subject.scores_fused:
                columns = [text._replace(**{f: getattr(text, f)[j::2] for f in text._fields}) for j in range(2)]
                pairs = [[model.match_score(visual[rows[:, i]], column) for column in columns] for i in range(2)]
                pairs = torch.stack([torch.stack(of_image, 1) for of_image in pairs], 1)
                scores.setdefault(f"{self.task}_fused", []).append(pairs)
        return [
            Measurement(task, None, name, estimate(right), 2, QUAD_CHANCE[name])
            for task, parts in scores.items()
            for name, right in quad_accuracy(torch.cat(parts).float().cpu()).items()
        ]

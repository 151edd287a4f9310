"""Is the statement true of the picture (or of the two pictures)? With the blind baselines that see only one side."""

import torch
from torch import Tensor

from crossvit.evaluation.subject import Measurement, Subject
from crossvit.metrics import estimate, image_only_logits, text_only_logits, verification_accuracy
from crossvit.tasks.cross_modal import pair_logits


class Verification:
    """True/false accuracy on a labelled split; a score of exactly 0 counts one half.

    A chain that has not trained the head for the task gives no measurement. blind: also train the text-only and image-only baselines on
    the train split and report them; they know nothing of the model, so they are measured once, for the row that asks first.
    """

    def __init__(self, data, split: str = "test", task: str = "true/false", blind: bool = False) -> None:
        self.data = data
        self.split = split
        self.task = task
        self.blind = blind

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        rows = [
            (pair_logits(subject.model, batch).float().cpu(), batch.label.cpu())
            for batch in subject.batches(self.data, self.data.pair_loader(self.split))
        ]
        logits, label = (torch.cat(column) for column in zip(*rows, strict=True))
        return [self._measure(self.task, logits[:, 1] - logits[:, 0], label)]

    def _measure(self, task: str, margin: Tensor, label: Tensor) -> Measurement:
        right = verification_accuracy(margin, label)
        return Measurement(task, "", "Acc@1", estimate(right), 2, 0.5)

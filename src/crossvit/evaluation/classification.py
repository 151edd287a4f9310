"""Acc@1 and Acc@5 over classes, by the classifier of the stages that train one."""

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.subject import Measurement, Subject
from crossvit.metrics import chance_at_k, classification_accuracy, estimate


class Classification:
    """Image classification on a split of an ImageNet-style module. A stage without a classifier gives no measurement."""

    def __init__(self, data, split: str = "val", task: str = "classification") -> None:
        self.data = data
        self.split = split
        self.task = task
        self.splits = (split,)

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        if subject.classifier is None:
            return []
        subject.classifier.eval()
        rows = []
        for batch in subject.batches(self.data, self.data.image_loader(self.split)):
            logits = subject.classifier(batch.image).float().cpu()
            if logits.shape[1] != len(self.data.classes):
                raise UserError(
                    f"{self.task}: the stage's classifier knows {logits.shape[1]} classes, the data have {len(self.data.classes)}: test it "
                    "on those that it was trained on, or leave this entry of the suite out (null)"
                )
            rows.append((logits, batch.label.cpu()))
        logits, label = (torch.cat(column) for column in zip(*rows, strict=True))
        return class_accuracies(self.task, "image->class", logits, label)


def class_accuracies(task: str, direction: str, scores: Tensor, label: Tensor) -> list[Measurement]:
    """Acc@1 and Acc@5 of class scores (B, K) for labels (B,)."""
    classes = scores.shape[1]
    return [
        Measurement(
            task=task,
            direction=direction,
            metric=f"Acc@{k}",
            estimate=estimate(classification_accuracy(scores, label, k)),
            candidates=classes,
            chance=float(chance_at_k(classes, 1, k)),
        )
        for k in (1, 5)
    ]

"""What the frozen visual features know of the classes of an ImageNet-style split: linear probe and nearest neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crossvit.errors import UserError
from crossvit.evaluation.classification import class_accuracies
from crossvit.evaluation.subject import Measurement, Subject
from crossvit.metrics import linear_probe_logits, neighbour_votes
from crossvit.metrics.probe import PENALTIES

PATCH_MAP, VISION = "patch encoder->class", "Visual Transformer->class"


class Probe:
    """Acc@1 and Acc@5 of a logistic regression and of a vote of neighbours, on the pooled map of the patch encoder and on the pooled output
    of the Visual Transformer, each where the chain has trained it. Pictures pass through the network once, without augmentation.

    penalties: L2 penalties, from which a part of the training split chooses. neighbours, temperature: of the vote by cosine.
    """

    def __init__(
        self,
        data,
        split: str = "val",
        train_split: str = "train",
        penalties: Sequence[float] = PENALTIES,
        neighbours: int = 20,
        temperature: float = 0.07,
    ) -> None:
        self.data = data
        self.split = split
        self.train_split = train_split
        self.penalties = tuple(penalties)
        self.neighbours = neighbours
        self.temperature = temperature
        self.splits = (split, train_split)
        if not self.penalties or min(self.penalties) < 0:
            raise UserError(f"penalties={list(self.penalties)}: give one or more numbers of at least 0")
        if neighbours < 1 or temperature <= 0:
            raise UserError(f"neighbours={neighbours} must be at least 1 and temperature={temperature} above 0")

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> list[Measurement]:
        train, train_label = self._features(subject, self.train_split)
        test, label = self._features(subject, self.split)
        found = []
        for direction, features in test.items():
            logits, _ = linear_probe_logits(train[direction], train_label, features, self.penalties)
            found += class_accuracies("linear_probe", direction, logits.cpu(), label.cpu())
        for direction, features in test.items():
            votes = neighbour_votes(train[direction], train_label, features, self.neighbours, self.temperature)
            found += class_accuracies("knn", direction, votes.cpu(), label.cpu())
        return found

    def _features(self, subject: Subject, split: str) -> tuple[dict[str, Tensor], Tensor]:
        """{direction: (n, D)} of the trained parts, and the labels (n,), on the device."""
        model, columns, labels = subject.model, {}, []
        for batch in subject.batches(self.data, self.data.image_loader(split)):
            feature_map, patches = model.patch_encoder(batch.image)
            labels.append(batch.label)
            if "patch_encoder" in subject.trained:
                columns.setdefault(PATCH_MAP, []).append(feature_map.mean(dim=(2, 3)).float())
            if "vision" in subject.trained:
                tokens = model.vision(patches, model.patch_encoder.grid(batch.image.shape[-2:]))
                columns.setdefault(VISION, []).append(model.vision.pool(tokens).float())
        return {direction: torch.cat(parts) for direction, parts in columns.items()}, torch.cat(labels)

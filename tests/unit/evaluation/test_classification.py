"""Classification by a stage's own classifier."""

from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.errors import UserError
from crossvit.evaluation.classification import Classification
from crossvit.evaluation.subject import Subject


class Classifier(torch.nn.Module):
    """Says class 1 of three to everything."""

    def forward(self, image):
        return torch.tensor([0.0, 2.0, 1.0]).expand(len(image), 3)


def accuracies(classes: int, classifier: torch.nn.Module | None) -> dict:
    batch = ImageBatch(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 1, 2]), torch.arange(4))
    data = SimpleNamespace(classes=range(classes), image_loader=lambda split: [batch], normalize=lambda image: image)
    subject = Subject(torch.nn.Identity(), frozenset(), torch.device("cpu"), classifier)
    return {m.metric: m.estimate.value for m in Classification(data)(subject)}


def test_accuracies():
    assert accuracies(3, Classifier()) == {"Acc@1": 0.5, "Acc@5": 1.0}


def test_a_stage_without_a_classifier_gives_nothing():
    assert accuracies(3, None) == {}


def test_other_classes_than_those_of_training_are_refused():
    with pytest.raises(UserError, match="classification: the stage's classifier knows 3 classes, the data have 40"):
        accuracies(40, Classifier())

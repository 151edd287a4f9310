"""Which head answers true or false: the one that the chain has trained."""

import pytest
import torch

from crossvit.evaluation.subject import Subject
from crossvit.evaluation.verification import Verification
from tests.small import cross_vit, pairs

BATCH = pairs(range(4), label=[0, 1, 1, 1])


class Data:
    """A split of one batch."""

    def pair_loader(self, split):
        return [BATCH]

    def normalize(self, image):
        return image


def accuracy(trained: set[str], right: str | None) -> float | None:
    """With a network whose head `right` says "true" to everything, and all others "false"."""
    model = cross_vit("none")
    for name in ("itm", "relation"):
        for parameter in getattr(model, name).parameters():
            parameter.data.zero_()
        last = list(getattr(model, name).parameters())[-1]
        last.data.copy_(torch.tensor([0.0, 1.0] if name == right else [1.0, 0.0]))
    subject = Subject(model, frozenset(trained), torch.device("cpu"))
    found = Verification(Data())(subject)
    return found[0].estimate.value if found else None


@pytest.mark.parametrize(
    ("trained", "answers"), [({"fusion", "itm"}, "itm"), ({"fusion", "relation"}, "relation"), ({"fusion", "itm", "relation"}, "itm")]
)  # fmt: skip
def test_the_trained_head_answers(trained, answers):
    other = "relation" if answers == "itm" else "itm"
    assert accuracy(trained, answers) == 0.75  # the true ones
    assert accuracy(trained, other) == 0.25


def test_no_head_no_figure():
    assert accuracy({"vision"}, None) is None

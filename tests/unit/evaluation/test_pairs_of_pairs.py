"""Twins and quads by models that know the answer, and by one that knows the words alone."""

from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.data.coco import Twin
from crossvit.data.vlr import Quad
from crossvit.errors import UserError
from crossvit.evaluation.quads import Quads
from crossvit.evaluation.subject import Subject
from crossvit.evaluation.twins import Twins
from crossvit.models.text_encoder import TextFeatures

BOTH = ("itc_image", "itc_text", "fusion", "itm")


class Reader:
    """A text is a number, the place of its first letter; a picture is a number too, and fits the text of the same number.

    The fused score is the dual one turned round.
    """

    fusion = SimpleNamespace(is_joint=True)

    def eval(self):
        return self

    def visual_features(self, image):
        return image

    def text_features(self, tokens, mask):
        return TextFeatures(tokens, tokens[:, 0], mask)

    def embed_visual(self, visual):
        return torch.nn.functional.one_hot(visual, 4).float()

    def embed_text(self, text):
        return torch.nn.functional.one_hot(text.pooled, 4).float()

    def match_score(self, visual, text):
        return -(visual == text.pooled).float()


class Letters:
    def encode(self, texts):
        tokens = torch.tensor([["abcd".index(text[0])] for text in texts])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)


def data(pictures=(0, 1, 2), **methods):
    batch = ImageBatch(torch.tensor(pictures), torch.arange(len(pictures)), torch.arange(len(pictures)))
    return SimpleNamespace(
        tokenizer=Letters(),
        normalize=lambda image: image,
        image_loader=lambda split: [batch],
        **{name: lambda split, value=value: value for name, value in methods.items()},
        training_texts=lambda: ["a dog runs", "a dog sits", "a cat runs"],
    )


def measure(evaluator, trained=BOTH):
    subject = Subject(Reader(), frozenset(trained), torch.device("cpu"))
    return {(m.task, m.metric): m for m in evaluator(subject)}


class TestTwins:
    TWINS = (
        Twin(0, "a dog runs", "b gnu runs", "replace_obj"),
        Twin(1, "b dog", "b dog", "swap_obj"),
        Twin(2, "c gnu", "a dog", "swap_obj"),
        Twin(9, "d", "a", "swap_obj"),  # its picture could not be read
    )

    def test_dual_fused_and_blind(self):
        found = measure(Twins(data(twins=self.TWINS), blind=True))
        values = {key: m.estimate.value for key, m in found.items()}
        assert values == {
            ("twins", "replace_obj"): 1.0,
            ("twins", "swap_obj"): 0.75,  # a tie and a hit
            ("twins_fused", "replace_obj"): 0.0,
            ("twins_fused", "swap_obj"): 0.25,
            ("twins_blind", "replace_obj"): 1.0,
            ("twins_blind", "swap_obj"): 0.25,  # a tie, and the false caption sounds better
        }

    def test_the_baseline_stands_beside_models_that_read(self):
        assert {task for task, _ in measure(Twins(data(twins=self.TWINS), blind=True), trained=())} == {"twins"}

    def test_no_twins(self):
        with pytest.raises(UserError, match="split=val holds no caption with a false twin"):
            Twins(data(twins=[]))


class TestQuads:
    QUADS = (Quad((0, 1), ("a", "b"), ""), Quad((1, 2), ("b", "d"), ""), Quad((2, 9), ("c", "d"), ""))

    def test_dual_and_fused(self):
        found = measure(Quads(data(quads=self.QUADS)))
        assert {m.estimate.queries for m in found.values()} == {2}  # the last one's picture could not be read
        values = {key: m.estimate.value for key, m in found.items()}
        # The second quad's other caption fits no picture: its scores tie at 0, below the one that fits.
        assert values["winoground", "text"] == pytest.approx((1 + 1 / 2) / 2)
        assert values["winoground", "image"] == pytest.approx((1 + 1 / 2) / 2)
        assert values["winoground", "group"] == pytest.approx((1 + 1 / 3) / 2)
        assert values["winoground_fused", "group"] == 0.0
        assert [found["winoground", name].chance for name in ("text", "image", "group")] == [1 / 4, 1 / 4, 1 / 6]

    def test_what_is_not_trained_is_not_measured(self):
        quads = data(quads=self.QUADS)
        assert {task for task, _ in measure(Quads(quads), BOTH[:2])} == {"winoground"}
        assert measure(Quads(quads), BOTH[:1]) == {}

    def test_no_quads(self):
        with pytest.raises(UserError, match="split=test holds no two captions by two pictures"):
            Quads(data(quads=[]))

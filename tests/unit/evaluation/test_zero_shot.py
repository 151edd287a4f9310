from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.errors import UserError
from crossvit.evaluation.subject import Subject
from crossvit.evaluation.zero_shot import ZeroShot

TOWERS = frozenset({"itc_image", "itc_text"})


class Words:
    """A word is its place in the list."""

    def __init__(self) -> None:
        self.seen = []

    def encode(self, texts):
        self.seen += texts
        return torch.tensor([[len(text)] for text in texts]), torch.ones(len(texts), 1, dtype=torch.bool)


class Towers:
    """A text is a vector by what it says, a picture the vector that its pixels hold."""

    MEANINGS = {"a fish": (3.0, 1.0), "no fish": (1.0, 0.0), "a dog": (0.0, 2.0), "no dog": (0.0, 5.0)}

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer

    def eval(self):
        return self

    def text_features(self, tokens, mask):
        return self.tokenizer.seen[-len(tokens) :]

    def embed_text(self, texts):
        return torch.nn.functional.normalize(torch.tensor([self.MEANINGS[text] for text in texts]), dim=1)

    def encode_image(self, image, normalize):
        assert normalize
        return image


def data(pictures=((1.0, 0.0), (0.6, 0.8)), labels=(0, 1)):
    batch = ImageBatch(torch.tensor(pictures), torch.tensor(labels), torch.arange(len(labels)))
    return SimpleNamespace(
        classes=[("n01", "fish, Piscis vulgaris"), ("n02", "dog")],
        tokenizer=Words(),
        normalize=lambda image: image,
        image_loader=lambda split: [batch],
    )


def measure(data, trained=TOWERS, **options):
    subject = Subject(Towers(data.tokenizer), frozenset(trained), torch.device("cpu"))
    return ZeroShot(data, templates=["a {}", "no {}"], **options)(subject)


def test_the_first_name_goes_through_every_template():
    images = data()
    first, fifth = measure(images)
    assert images.tokenizer.seen == ["a fish", "no fish", "a dog", "no dog"]
    assert (first.metric, first.direction, first.candidates, first.chance) == ("Acc@1", "image->class", 2, 0.5)
    assert first.estimate.value == 1.0 and first.estimate.queries == 2
    assert fifth.metric == "Acc@5" and fifth.estimate.value == fifth.chance == 1.0


def test_sentences_are_averaged_as_unit_vectors_and_the_mean_is_normalised():
    """Half way between the classes' directions lies the line that parts them."""
    fish = torch.nn.functional.normalize(torch.tensor(((3.0, 1.0), (1.0, 0.0))), dim=1).mean(0)
    angle = (torch.atan2(fish[1], fish[0]) + torch.pi / 2) / 2
    for nudge, label in ((-0.01, 0), (0.01, 1)):
        picture = ((torch.cos(angle + nudge).item(), torch.sin(angle + nudge).item()),)
        assert measure(data(picture, (label,)))[0].estimate.value == 1.0


def test_untrained_towers_give_no_figure():
    assert measure(data(), trained={"itc_image"}) == []


def test_openais_templates_are_open_clips():
    found = ZeroShot(data(), templates="openai")._sentences()
    assert len(found) == 80 and found[0]("fish") == "a bad photo of a fish."


@pytest.mark.parametrize("templates", ["imagenet", [], ["a photo"], ["a {}", 3]])
def test_nonsense(templates):
    with pytest.raises(UserError, match="templates="):
        ZeroShot(data(), templates=templates)

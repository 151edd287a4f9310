import pytest
import torch

from crossvit.metrics import ImageTextPairs


def brute_force(image_id, text_image_id, text_id):
    """A text answers an image if an equal text was written for that image."""
    written = set(zip(text_image_id, text_id, strict=True))
    return torch.tensor([[(image, text) in written for text in text_id] for image in image_id])


def test_captions_of_an_image_are_positives():
    pairs = ImageTextPairs(torch.tensor([10, 20]), torch.tensor([20, 10, 20]))
    assert pairs.texts_of(torch.tensor([0, 1])).tolist() == [[False, True, False], [True, False, True]]
    assert pairs.images_of(torch.tensor([2, 1])).tolist() == [[False, True], [True, False]]


def test_equal_texts_and_repeated_images_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        image_id = torch.randint(0, 6, (8,), generator=generator)
        text_image_id = torch.randint(0, 7, (12,), generator=generator)  # id 6 has no image row
        text_id = torch.randint(-3, 4, (12,), generator=generator)
        pairs = ImageTextPairs(image_id, text_image_id, text_id)
        expected = brute_force(image_id.tolist(), text_image_id.tolist(), text_id.tolist())
        images = torch.randperm(8, generator=generator)[:5]
        texts = torch.randint(0, 12, (7,), generator=generator)  # rows may repeat
        assert torch.equal(pairs.texts_of(images), expected[images])
        assert torch.equal(pairs.images_of(texts), expected.T[texts])


ONE = torch.tensor([1])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((torch.tensor([1.0]), ONE), "^image_id must be a non-empty vector of integers"),
        ((torch.tensor([[1]]), ONE), "^image_id must"),
        ((torch.zeros(0, dtype=torch.int64), ONE), "^image_id must"),
        ((torch.tensor([True]), ONE), "^image_id must"),
        ((ONE, torch.tensor([1.0])), "^text_image_id must"),
        ((ONE, ONE, torch.tensor([1.0])), "^text_id must"),
        ((ONE, ONE, torch.tensor([1, 2])), "text_id has 2 entries, text_image_id 1"),
    ],
)
def test_misuse_is_named(ids, message):
    with pytest.raises(ValueError, match=message):
        ImageTextPairs(*ids)

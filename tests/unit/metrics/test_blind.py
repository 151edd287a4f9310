"""The baselines must find a bias that is there, and nothing where there is none."""

import pytest
import torch

from crossvit.metrics import (
    classification_accuracy,
    downsample,
    folds,
    image_only_logits,
    logistic_logits,
    text_only_logits,
    verification_accuracy,
)


def captions(count, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 30, (count, 8), generator=generator)
    mask = torch.arange(8) < torch.randint(4, 9, (count, 1), generator=generator)
    return tokens.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("word", [7, 29])  # 29 is the last of the vocabulary
def test_a_word_that_gives_the_answer_away_is_found(word):
    train, train_mask = captions(300, 0)
    test, test_mask = captions(100, 1)
    labels = (train == word).any(1).long()
    found = text_only_logits(train, train_mask, labels, test, test_mask)
    assert found.shape == (100, 2)
    assert verification_accuracy(found, (test == word).any(1)).mean() > 0.95


def test_balanced_captions_give_exactly_one_half():
    tokens, mask = captions(80, 0)
    labels = torch.arange(2).repeat_interleave(80)
    test, test_mask = captions(40, 1)
    found = text_only_logits(tokens.repeat(2, 1), mask.repeat(2, 1), labels, test.repeat(2, 1), test_mask.repeat(2, 1))
    assert verification_accuracy(found, torch.arange(2).repeat_interleave(40)).mean().item() == 0.5


def test_padding_and_unknown_words_count_for_nothing():
    train, mask = captions(100, 0)
    labels = (train == 7).any(1).long()
    test, test_mask = captions(20, 1)
    longer = torch.cat([test, torch.full((20, 3), 7)], 1)  # the telling word, behind the mask
    longer_mask = torch.cat([test_mask, torch.zeros(20, 3, dtype=torch.bool)], 1)
    assert torch.allclose(
        text_only_logits(train, mask, labels, test, test_mask),
        text_only_logits(train, mask, labels, longer, longer_mask),
    )
    unknown = text_only_logits(train, mask, labels, torch.tensor([[9999], [5555]]), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(unknown[0], unknown[1])


def test_images_that_give_the_answer_away_are_found_in_inference_mode():
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        image = torch.randint(0, 200, (240, 3, 16, 16), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (240,), generator=generator)
        image[labels == 1, 0, :8, :8] += 50
        image[labels == 2, 2, 8:, 8:] += 50
        features = downsample(image, 4)
        found = image_only_logits(features[:160], labels[:160], features[160:])
        shuffled = image_only_logits(features[:160], labels[torch.randperm(160, generator=generator)], features[160:])
    assert classification_accuracy(found, labels[160:]).mean() > 0.95
    assert classification_accuracy(shuffled, labels[160:]).mean() < 0.6


def test_downsample_averages_and_joins_two_images():
    image = torch.arange(2 * 2 * 3 * 4 * 4).reshape(2, 2, 3, 4, 4)
    found = downsample(image, 1)
    assert found.shape == (2, 6)
    assert found[1, 5].item() == pytest.approx(image[1, 1, 2].float().mean().item())
    assert downsample(image).shape == (2, 2 * 3 * 8 * 8)


def test_the_image_baseline_is_a_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    train, labels, test = torch.randn(40, 3, generator=generator), torch.arange(40) % 2, torch.eye(3)
    assert torch.equal(image_only_logits(train, labels, test), logistic_logits(train, labels, test, l2=0.01))
    assert torch.equal(
        image_only_logits(train, labels, test, max_iter=1), logistic_logits(train, labels, test, l2=0.01, max_iter=1)
    )


def test_misuse_is_named():
    with pytest.raises(ValueError, match=r"\(2,\) labels for 3 training rows"):
        image_only_logits(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 2))


def test_folds_part_no_sentence_and_no_picture():
    sentence = torch.tensor([5, 5, 9, 7, 7, 8, 3, 2])
    picture = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5])
    # 0-1-2 by the sentence 5 and the picture 1; 3-4 by the sentence 7; 5 alone; 6-7 by the picture 5
    assert folds(sentence, picture, count=4).tolist() == [0, 0, 0, 1, 1, 3, 2, 2]
    assert folds(sentence, picture, count=2).tolist() == [0, 0, 0, 1, 1, 0, 1, 1]  # four rows each
    chain = torch.arange(10)  # each row is held to the next one by a key, in turn
    assert folds(chain // 2, (chain + 1) // 2).tolist() == [0] * 10


def test_folds_are_as_equal_as_they_can_be():
    assert folds(torch.arange(7)).bincount().tolist() == [2, 2, 1, 1, 1]
    sizes = torch.tensor([1, 1, 6, 1, 3, 2, 2, 1, 3])
    assert sorted(folds(torch.arange(9).repeat_interleave(sizes)).bincount().tolist()) == [3, 3, 4, 4, 6]


def test_where_training_knows_one_answer_alone_it_is_given():
    tokens, mask = captions(40, 0)
    found = text_only_logits(tokens, mask, torch.zeros(40, dtype=torch.long), *captions(10, 1))
    assert verification_accuracy(found, torch.zeros(10)).mean() == 1
    found = text_only_logits(tokens, mask, torch.ones(40, dtype=torch.long), *captions(10, 1))
    assert verification_accuracy(found, torch.zeros(10)).mean() == 0

"""Which head answers true or false: the one that the chain has trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossvit.errors import UserError
from crossvit.evaluation.subject import Subject
from crossvit.evaluation.verification import Verification
from crossvit.metrics import estimate
from tests.small import cross_vit, pairs

BATCH = pairs(range(4), label=[0, 1, 1, 1])


def labelled(split):
    return SimpleNamespace(labels=np.zeros(4, np.int64))


class Data:
    """A split of one batch."""

    index = staticmethod(labelled)

    def pair_loader(self, split):
        return [BATCH]

    def normalize(self, image):
        return image


def accuracy(
    trained: set[str], right: str | None, last: str | None = None, fusion: str = "co_attention"
) -> float | None:
    """With a network whose head `right` says "true" to everything, and all others "false"."""
    model = cross_vit(fusion)
    for name in ("itm", "relation"):
        for parameter in getattr(model, name).parameters():
            parameter.data.zero_()
        bias = list(getattr(model, name).parameters())[-1]
        bias.data.copy_(torch.tensor([0.0, 1.0] if name == right else [1.0, 0.0]))
    subject = Subject(model, frozenset(trained), torch.device("cpu"), trained_last=frozenset({last} if last else ()))
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


def test_of_two_heads_the_one_of_the_last_stage_answers():
    both = {"fusion", "itm", "relation"}
    assert accuracy(both, "relation", last="relation") == 0.75
    assert accuracy(both, "itm", last="itm") == 0.75


def test_without_fusion_the_matching_head_knows_nothing_of_the_pair():
    assert accuracy({"fusion", "itm"}, "itm", fusion="none") is None
    assert accuracy({"fusion", "itm", "relation"}, "relation", fusion="none") == 0.75


def test_a_head_for_two_pictures_does_not_answer_for_one():
    assert accuracy({"fusion", "two_image"}, None) is None


def test_a_threshold_fitted_elsewhere_and_none_at_all(monkeypatch):
    """Scores 3, 2, 1 and 0 more than a threshold that is far off; fitted between 2 and 1 on another split, where the labels say so."""
    split = {"test": pairs(range(4), label=[1, 0, 1, 0]), "dev": pairs(range(4), label=[1, 1, 0, 0])}
    data = SimpleNamespace(pair_loader=lambda name: [split[name]], normalize=lambda image: image, index=labelled)
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0]) - 50
    logits = torch.stack([torch.zeros(4), scores], dim=1)
    monkeypatch.setattr("crossvit.evaluation.verification.pair_logits", lambda *_, **__: logits)
    subject = Subject(cross_vit(), frozenset({"fusion", "itm"}), torch.device("cpu"))
    found = {m.metric: m.estimate.value for m in Verification(data, fit_split="dev")(subject)}
    assert found == {"Acc@1": 0.5, "Acc@1 fitted": 0.5, "AUROC": 0.75}
    split["dev"] = pairs(range(4), label=[1, 1, 1, 0])  # between 1 and 0
    assert {m.metric: m.estimate.value for m in Verification(data, fit_split="dev")(subject)}["Acc@1 fitted"] == 0.75
    assert [m.metric for m in Verification(data)(subject)] == ["Acc@1", "AUROC"]


def test_statements_about_one_picture_are_no_cases_of_their_own(monkeypatch):
    one_each, shared = pairs(range(8), label=[1] * 8), pairs([0, 0, 0, 0, 1, 1, 1, 1], range(8), label=[1] * 8)
    logits = torch.tensor([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4)  # right of the first picture, wrong of the second
    monkeypatch.setattr("crossvit.evaluation.verification.pair_logits", lambda *_, **__: logits)
    subject = Subject(cross_vit(), frozenset({"fusion", "itm"}), torch.device("cpu"))
    widths = []
    for batch in (one_each, shared):
        data = SimpleNamespace(
            pair_loader=lambda _, batch=batch: [batch], normalize=lambda image: image, index=labelled
        )
        found = Verification(data)(subject)[0].estimate
        widths.append(found.high - found.low)
    assert widths[1] > 1.3 * widths[0]


def blind(batches, sentences, task="nlvr") -> dict:
    data = SimpleNamespace(
        pair_loader=lambda _: batches,
        normalize=lambda image: image,
        sentences=lambda _: sentences.numpy(),
        index=labelled,
    )
    subject = Subject(cross_vit(), frozenset({"fusion", "itm"}), torch.device("cpu"))
    found = Verification(data, task=task, blind="folds")(subject)
    return {m.task: m.estimate for m in found if "blind" in m.task}


def told_by_a_word(sentence: torch.Tensor, text: torch.Tensor) -> list:
    """Two batches of 40 statements about 40 pictures that say nothing; each of the eight sentences has its own word and its own label."""
    batch = pairs(range(40), label=(sentence % 2).tolist())
    tokens = (10 + sentence)[:, None].expand_as(batch.tokens)
    batch = batch._replace(tokens=tokens, text_id=text, image=torch.zeros_like(batch.image))
    parts = (slice(25), slice(25, 40))
    return [type(batch)(*(None if column is None else column[rows] for column in batch)) for rows in parts]


def test_without_a_training_split_the_blind_baselines_are_fitted_on_the_rest_of_the_test():
    rows, sentence = torch.arange(40), torch.arange(40) // 5
    leaking = blind(
        told_by_a_word(sentence, rows), rows
    )  # as if all statements were different: each word has been seen in training
    assert {task: found.value for task, found in leaking.items()} == {"nlvr_blind_text": 1.0, "nlvr_blind_image": 0.5}
    assert blind(told_by_a_word(sentence, rows), sentence)["nlvr_blind_text"].value < 0.6
    assert blind(told_by_a_word(sentence, sentence), rows)["nlvr_blind_text"].value < 0.6
    assert set(blind(told_by_a_word(sentence, rows), rows, "vlr")) == {"blind_text", "blind_image"}


def test_the_answers_to_one_text_are_no_cases_of_their_own():
    sentence = torch.arange(40) // 5
    alike = blind(told_by_a_word(sentence, sentence), sentence)["nlvr_blind_text"]
    apart = estimate(torch.cat([torch.ones(round(40 * alike.value)), torch.zeros(40 - round(40 * alike.value))]))
    assert alike.high - alike.low > 1.3 * (apart.high - apart.low)


def test_folds_of_statements_that_all_hold_together_and_other_words():
    with pytest.raises(UserError, match="hold together by text, sentence or picture"):
        blind([pairs([0] * 4, range(4), label=[0, 1, 0, 1])], torch.arange(4))
    with pytest.raises(UserError, match="blind=fold: true, false, or folds"):
        Verification(Data(), blind="fold")


def test_with_consistency_the_statements_of_one_sentence_are_one_case(monkeypatch):
    batch = pairs(range(8), label=[1] * 8)
    logits = torch.tensor([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4)  # right of the first sentence, wrong of the second
    monkeypatch.setattr("crossvit.evaluation.verification.pair_logits", lambda *_, **__: logits)
    subject = Subject(cross_vit(), frozenset({"fusion", "itm"}), torch.device("cpu"))
    sentences = (torch.arange(8) // 4).numpy()
    data = SimpleNamespace(
        pair_loader=lambda _: [batch], normalize=lambda image: image, sentences=lambda _: sentences, index=labelled
    )
    (plain, *_), (grouped, *_) = Verification(data)(subject), Verification(data, groups=True)(subject)
    assert grouped.estimate.high - grouped.estimate.low > 1.3 * (plain.estimate.high - plain.estimate.low)


def test_pairs_without_a_label_are_no_statements():
    captions = SimpleNamespace(index=lambda split: SimpleNamespace(labels=None))
    with pytest.raises(UserError, match="split=val: true/false needs pairs with a label, 0 or 1"):
        Verification(captions, split="val")

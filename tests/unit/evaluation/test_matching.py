from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import ImageBatch, TextBatch
from crossvit.data.tokenizer import WordTokenizer
from crossvit.errors import UserError
from crossvit.evaluation import matching
from crossvit.evaluation.matching import Matching, most_candidates
from crossvit.evaluation.subject import Measurement, Subject, encode_corpus
from tests.small import captions, cross_vit

TOWERS = ("itc_image", "itc_text")


@pytest.fixture
def data():
    """Five pictures; the first has two captions, one of which is the second's too."""
    texts = [(10, 1, "a"), (11, 1, "b"), (20, 2, "a"), (30, 3, "c"), (40, 4, "d"), (50, 5, "e")]
    generator = torch.Generator().manual_seed(0)
    image, ids = torch.randn(5, 3, 32, 32, generator=generator), torch.arange(1, 6)
    tokens, mask = captions([4, 5, 4, 6, 7, 5], generator)
    owner = torch.tensor([image_id for _, image_id, _ in texts])
    text_id = torch.tensor([0, 1, 0, 2, 3, 4])
    return SimpleNamespace(
        images=lambda split: [(i, "") for i in range(1, 6)],
        captions=lambda split: texts,
        image_loader=lambda split: [ImageBatch(image, ids, torch.arange(5))],
        text_loader=lambda split: [TextBatch(tokens, mask, owner, text_id, torch.arange(6))],
        normalize=lambda image: image,
        tokenizer=WordTokenizer(),
    )


def run(data, *parts, **options) -> dict[tuple, Measurement]:
    subject = Subject(cross_vit().eval(), frozenset([*TOWERS, *parts]), torch.device("cpu"))
    return {(m.task, m.direction, m.metric): m for m in Matching(data, **options)(subject)}


def test_r_precision_stands_where_queries_have_several_answers(data):
    found = run(data)
    figure = found["vqcmi", "image->text", "R-precision"]
    assert figure.chance == pytest.approx((3 + 2 + 1 + 1 + 1) / 6 / 5) and figure.candidates == 6
    assert ("vqcmi", "text->image", "R-precision") in found  # "a" fits two pictures
    assert not any(metric.startswith("ceiling") for _, _, metric in found)


def test_the_shortlist_says_what_it_leaves_to_reach(data):
    found = run(data, "fusion", "itm", rerank=2)
    for direction in ("image->text", "text->image"):
        ceiling = found["vqcmi_fused", direction, "ceiling@2"]
        first, reached = (found[task, direction, "Acc@1"].estimate.value for task in ("vqcmi", "vqcmi_fused"))
        assert first <= ceiling.estimate.value and reached <= ceiling.estimate.value
        assert ceiling.chance is None
    everything = run(data, "fusion", "itm", rerank=6)
    assert everything["vqcmi_fused", "image->text", "ceiling@6"].estimate.value == 1.0


def test_n_way(data):
    found = run(data, "fusion", "itm", candidates=3, task="n_way")
    assert {m.candidates for m in found.values()} == {3}
    assert {metric for _, _, metric in found} == {"Acc@1", "Acc@5", "Acc@10"}
    assert found["n_way_fused", "text->image", "Acc@1"].chance == pytest.approx(1 / 3)


def test_more_candidates_than_there_are_distractors(data):
    [pairs] = Matching.forms(data, "val")
    assert most_candidates(pairs) == 4  # the first picture's two captions, and the second's, leave three
    Matching(data, candidates=4)
    for candidates in (1, 5):
        with pytest.raises(UserError, match=f"candidates={candidates}: val has distractors for 2 to 4"):
            Matching(data, candidates=candidates)


def test_pictures_that_cannot_be_read_may_be_distractors_too_few(data, monkeypatch):
    found = Matching(data, candidates=4)
    whole = matching.encode_corpus

    def damaged(subject, data, split):
        corpus = whole(subject, data, split)
        return corpus._replace(image=corpus.image[2:], image_id=corpus.image_id[2:])

    monkeypatch.setattr(matching, "encode_corpus", damaged)
    with pytest.raises(UserError, match="candidates=4: what could be read of val has distractors for 3"):
        found(Subject(cross_vit().eval(), frozenset({"itc_image", "itc_text"}), torch.device("cpu")))


@pytest.mark.parametrize("rerank", [0, None, 2.5, True])
def test_a_shortlist_that_is_none(data, rerank):
    with pytest.raises(UserError, match=f"rerank={rerank}: give how many"):
        Matching(data, rerank=rerank)


def test_what_a_reader_must_know_of_a_figure_is_said(data, caplog):
    model = cross_vit().eval()
    for parameter in model.itc_image.parameters():
        parameter.data.fill_(float("nan"))
    list(Matching(data)(Subject(model, frozenset(TOWERS), torch.device("cpu"))))
    assert "vqcmi, image->text: 30 scores are NaN and were ranked last" in caplog.text
    caplog.clear()
    run(data)
    assert "vqcmi" not in caplog.text


def test_a_cell_without_chance_survives_its_file():
    found = Measurement("vqcmi_fused", None, "ceiling@16", (0.5, 0.4, 0.6, 10), 5, None)
    assert Measurement.from_json(found.to_json()) == found


def test_only_the_fused_score_keeps_every_token(data):
    model = cross_vit().eval()
    dual, fused = (
        encode_corpus(Subject(model, frozenset([*TOWERS, *parts]), torch.device("cpu")), data, "val")
        for parts in ((), ("fusion", "itm"))
    )
    assert dual.visual is None and dual.text is None
    assert fused.visual.shape == (5, 17, 16) and fused.text.tokens.shape == (6, 7, 12)
    assert torch.equal(dual.image, fused.image) and torch.equal(dual.caption, fused.caption)

"""Films and reports: merged reports, own reports, precision by class and labels by prompts, on embeddings chosen by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossvit.data.batches import ImageBatch
from crossvit.errors import UserError
from crossvit.evaluation import class_precision, label_prompts, report_matching
from crossvit.evaluation.class_precision import ClassPrecision
from crossvit.evaluation.label_prompts import LabelPrompts
from crossvit.evaluation.matching import most_candidates
from crossvit.evaluation.report_matching import ReportMatching, merged
from crossvit.evaluation.subject import Corpus, Subject
from tests.small import cross_vit

TOWERS = frozenset({"itc_image", "itc_text"})
STUDIES, PATIENTS, REPORTS = [10, 20, 30, 40], [1, 1, 2, 3], [7, 8, 7, 9]  # studies 10 and 30 have the same report
FILMS = [10, 10, 20, 30, 40]
LABELS = [[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0], [0.0, 1.0]]  # Large heart, Fluid


def unit(angles) -> torch.Tensor:
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1).float()


@pytest.fixture
def data():
    index = SimpleNamespace(
        study_ids=np.array(STUDIES),
        patient_ids=np.array(PATIENTS),
        classes=["Large heart", "Fluid"],
        study_labels=np.array(LABELS),
    )
    images = ImageBatch(torch.zeros(5, 3, 32, 32), torch.tensor(FILMS), torch.arange(5))
    return SimpleNamespace(
        index=lambda split: index,
        image_loader=lambda split: [images],
        normalize=lambda image: image,
        tokenizer=None,
        images=lambda split: [],
        captions=lambda split: [],
    )


@pytest.fixture
def corpus(monkeypatch):
    """Films at 0, 60, 35, 5 and 90 degrees; the reports of the four studies at 0, 40, 0 and 90."""
    text = torch.tensor(REPORTS)
    found = Corpus(
        visual=None,
        image=unit([0, 60, 35, 5, 90]),
        image_id=torch.tensor(FILMS),
        text=None,
        caption=unit([0, 40, 0, 90]),
        text_image_id=torch.tensor(STUDIES),
        text_id=text,
    )
    for module in (report_matching, class_precision):
        monkeypatch.setattr(module, "encode_corpus", lambda subject, data, split: found)
    return found


@pytest.fixture
def subject():
    return Subject(cross_vit().eval(), TOWERS, torch.device("cpu"))


def figures(measurements) -> dict:
    return {(m.task, m.direction, m.metric): m for m in measurements}


def test_identical_reports_are_one_distractor(data):
    data.images = lambda split: [(study, f"{study}.jpg") for study in FILMS]
    data.captions = lambda split: [(row, study, f"report {REPORTS[row]}") for row, study in enumerate(STUDIES)]
    shared, strictly = ReportMatching.forms(data, "test")
    assert most_candidates(strictly) == 4  # the first study has two films of five, and three reports of others
    assert most_candidates(shared) == 3  # two reports are another one's, and two films
    data.captions = lambda split: [(row, study, "one report") for row, study in enumerate(STUDIES)]
    with pytest.raises(UserError, match="candidates=2: test has distractors for 2 to 1"):
        ReportMatching(data, "test", candidates=2)


def test_identical_reports_are_one_candidate(corpus):
    formed, study = merged(corpus)
    assert formed.text_id.tolist() == [7, 8, 9] and study.tolist() == [10, 20, 40]
    assert torch.equal(formed.caption, unit([0, 40, 90]))
    assert formed.image_id.tolist() == [7, 7, 8, 7, 9]


def test_matching_by_report_and_by_own_report(data, corpus, subject):
    found = figures(ReportMatching(data, split="test", task="mimic")(subject))
    # Merged, image->text: the film at 60 degrees is nearer to the reports at 40 and 90 than to its own at 0; the others find theirs first.
    by_report = found["mimic", "image->text", "Acc@1"]
    assert by_report.estimate.value == pytest.approx(4 / 5) and by_report.candidates == 3
    assert by_report.chance == pytest.approx(1 / 3) and by_report.estimate.queries == 5
    assert found["mimic", "image->text", "mean rank"].estimate.value == pytest.approx((1 + 3 + 1 + 1 + 1) / 5)
    assert found["mimic", "image->text", "mean rank"].chance == pytest.approx(2)
    # text->image: the report at 0 is answered by three of the five films.
    assert found["mimic", "text->image", "Acc@1"].estimate.queries == 3
    assert found["mimic", "text->image", "Acc@1"].chance == pytest.approx((3 / 5 + 1 / 5 + 1 / 5) / 3)
    assert found["mimic", "text->image", "R-precision"].estimate.value == pytest.approx((2 / 3 + 1 + 1) / 3)
    # Strict: two equal reports tie, and one of them is right.
    strict = found["mimic_strict", "image->text", "Acc@1"]
    assert strict.estimate.value == pytest.approx((0.5 + 0 + 1 + 0.5 + 1) / 5) and strict.candidates == 4
    assert strict.chance == pytest.approx(1 / 4)
    assert found["mimic_strict", "image->text", "mean rank"].estimate.value == pytest.approx(
        (1.5 + 3.5 + 1 + 1.5 + 1) / 5
    )
    # Report 30 is answered by the film at 5 degrees alone, and that at 0 is nearer.
    assert found["mimic_strict", "text->image", "Acc@1"].estimate.value == pytest.approx(3 / 4)


def test_intervals_take_a_patient_for_one_cluster(data, corpus, subject):
    wide = figures(ReportMatching(data, split="test", task="mimic")(subject))
    data.index("test").patient_ids = np.array([1, 1, 1, 1])
    wider = figures(ReportMatching(data, split="test", task="mimic")(subject))
    key = "mimic", "image->text", "Acc@1"
    assert wider[key].estimate.value == wide[key].estimate.value
    assert wider[key].estimate.low < wide[key].estimate.low


def test_precision_by_class(data, corpus, subject):
    found = figures(ClassPrecision(data, split="test", task="p", ks=(1, 2, 100))(subject))
    # Reports: that of studies 10 and 30 is of both classes, 20 and 40 of Fluid. Every report holds Fluid: not measured for films.
    assert ("p", "image->text, Fluid", "Prec@1") not in found and ("p", "image->text", "Prec@1") not in found
    heart = found["p", "image->text, Large heart", "Prec@2"]  # asked by the films at 0 and 60
    assert heart.estimate.value == pytest.approx((1 / 2 + 0) / 2) and heart.estimate.queries == 2
    assert heart.candidates == 3 and heart.chance == pytest.approx(1 / 3)
    # Films: 0 and 60 are Large heart, 35, 5 and 90 Fluid.
    assert found["p", "text->image, Large heart", "Prec@2"].estimate.value == pytest.approx(1 / 2)
    fluid = found["p", "text->image, Fluid", "Prec@2"]  # reports at 0: 0, 5; at 40: 35, 60; at 90: 90, 60
    assert fluid.estimate.value == pytest.approx(1 / 2) and fluid.chance == pytest.approx(3 / 5)
    both = found["p", "text->image", "Prec@2"]
    assert both.estimate.value == pytest.approx(1 / 2) and both.chance == pytest.approx((2 / 5 + 3 * 3 / 5) / 4)
    assert not any(metric == "Prec@100" for _, _, metric in found)


@pytest.fixture
def prompts(monkeypatch, subject, corpus):
    """Prompts in directions chosen by their first word."""
    angles = {"large": 0, "no": 90, "wet": 80, "dry": 10}
    asked = []

    def embed(subject, tokenizer, texts):
        asked.extend(texts)
        return unit([angles[text.split()[0]] for text in texts])

    monkeypatch.setattr(label_prompts, "embed_sentences", embed)
    monkeypatch.setattr(subject.model, "encode_image", lambda image, normalize: corpus.image)
    return asked


def test_labels_by_prompts(data, subject, prompts):
    evaluator = LabelPrompts(data, split="test", task="z", sentences={"Fluid": ["wet", "dry"]})
    found = figures(evaluator(subject))
    assert prompts == ["large heart", "wet", "no large heart", "dry"]
    # Large heart, known of four films at 0, 60 (true), 35 and 90 (false): said of 0 and 35.
    assert found["z", "Large heart", "Acc@1"].estimate.value == pytest.approx(2 / 4)
    assert found["z", "Large heart", "F1"].estimate.value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["z", "Large heart", "AUROC"].estimate.value == pytest.approx(3 / 4)
    assert (
        found["z", "Large heart", "F1"].chance == pytest.approx(2 / 4)
        and found["z", "Large heart", "Acc@1"].chance == 0.5
    )
    # Fluid, said of 60 and 90: false of 0 and 60, true of 35, 5 and 90.
    assert found["z", "Fluid", "Acc@1"].estimate.value == pytest.approx(2 / 5)
    assert found["z", "Fluid", "AUROC"].estimate.value == pytest.approx(4 / 6)
    # One of the two: 0 and 60 are Large heart alone, the others Fluid alone; nearest of 0 and 80 degrees.
    choice = found["z", "one of the labels", "Acc@1"]
    assert choice.estimate.value == pytest.approx(2 / 5) and choice.candidates == 2 and choice.estimate.queries == 5
    assert found["z", "one of the labels", "macro F1"].estimate.value == pytest.approx((2 / 5 + 2 / 5) / 2)


def test_labels_that_are_all_alike_are_not_measured(data, subject, prompts):
    data.index("test").study_labels = np.array([[1.0, 0.0]] * 4)
    assert LabelPrompts(data, split="test", positive=["large {}"])(subject) == []


def test_untrained_towers_give_no_figure(data, corpus, subject):
    subject.trained = frozenset()
    assert ClassPrecision(data, split="test")(subject) == [] == LabelPrompts(data, split="test")(subject)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: ClassPrecision(data, ks=[]), r"ks=\[\]"),
        (lambda data: LabelPrompts(data, positive=["a film"]), r"positive=\['a film'\]: give sentences that hold \{\}"),
        (lambda data: LabelPrompts(data, sentences={"Fluid": "wet"}), r"sentences\.Fluid=wet: give two"),
    ],
)
def test_wrong_values(data, make, message):
    with pytest.raises(UserError, match=message):
        make(data)


@pytest.mark.parametrize("evaluator", [ClassPrecision, LabelPrompts])
def test_labels_are_needed(data, evaluator):
    data.index("test").classes = []
    with pytest.raises(UserError, match=r"split=test: the studies have no labels \(data\.labels\)"):
        evaluator(data)

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from crossvit.data.batches import PairBatch
from crossvit.errors import UserError
from crossvit.evaluation.calibration import Calibration
from crossvit.evaluation.robustness import Robustness
from crossvit.evaluation.subject import Subject
from crossvit.evaluation.verification import Verification
from crossvit.metrics import auroc

TRAINED = frozenset({"itc_image", "itc_text", "fusion", "itm"})


class Scorer:
    """The cosine of a pair is its picture's value; the logit difference ten times as far from 0.3."""

    fusion = SimpleNamespace(is_joint=True)

    def eval(self):
        return self

    def visual_features(self, image):
        return image

    def text_features(self, tokens, mask):
        return tokens

    def embed_visual(self, image):
        return torch.stack([image, (1 - image**2).sqrt()], 1)

    def embed_text(self, tokens):
        return torch.tensor([1.0, 0.0]).expand(len(tokens), 2)

    def match_score(self, visual, text):
        return 10 * (visual - 0.3)


def pairs(seed: int) -> PairBatch:
    """Two statements a picture; the true ones have cosines around 0.5, the false ones around 0.1."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (400,), generator=generator)
    cosine = (0.1 + 0.4 * label + 0.15 * torch.randn(400, generator=generator)).clamp(-0.9, 0.9)
    zeros, picture = torch.zeros(400, 1, dtype=torch.long), torch.arange(400) // 2
    return PairBatch(cosine, zeros, zeros.bool(), picture, torch.arange(400), torch.arange(400), label)


@pytest.fixture
def data():
    splits = {"dev": pairs(0), "test": pairs(1)}
    return SimpleNamespace(
        index=lambda split: SimpleNamespace(labels=splits[split].label.numpy(), rows=splits[split].image_id.numpy()),
        pair_loader=lambda split: [splits[split]],
        normalize=lambda image: image,
        manifest=lambda splits: {"sha256": "abc", "splits": list(splits)},
        splits=splits,
    )


def run(data, trained=TRAINED, **options):
    subject = Subject(Scorer(), frozenset(trained), torch.device("cpu"))
    return {(m.task, m.metric): m for m in Calibration(data, **options)(subject)}, subject.kept


def test_fitted_on_one_split_and_tested_on_the_other(data):
    found, kept = run(data)
    assert set(found) == {(t, m) for t in ("calibration", "calibration_fused") for m in ("Acc@1", "AUROC", "ECE")}
    decision = kept["decision-calibration"]
    assert decision["scores"]["dual"]["threshold"] == pytest.approx(0.3, abs=0.05)
    assert decision["scores"]["fused"]["threshold"] == pytest.approx(
        10 * (decision["scores"]["dual"]["threshold"] - 0.3), abs=1e-4
    )
    assert decision["fitted_on"] == "dev" and decision["data"]["splits"] == ["test", "dev"]
    test = data.splits["test"]
    area = found["calibration", "AUROC"]
    assert area.estimate.value == pytest.approx(auroc(test.image, test.label)) and area.chance == 0.5
    right = ((test.image > decision["scores"]["dual"]["threshold"]) == test.label).float().mean().item()
    assert found["calibration", "Acc@1"].estimate.value == pytest.approx(right, abs=1e-6)
    bins = kept["reliability-calibration"]
    assert set(bins) == {"calibration", "calibration_fused"}
    for task, curve in bins.items():
        assert sum(one.rows for one in curve) == 400 and len(curve) == 15
        error = sum(one.rows * abs(one.share - one.probability) for one in curve) / 400
        assert error == pytest.approx(found[task, "ECE"].estimate.value)
    for key in found:
        assert found[key].estimate.low <= found[key].estimate.value <= found[key].estimate.high
        assert found[key].estimate.queries == 400


def test_the_scaled_cosine_is_calibrated_and_an_unsure_matching_head_is_not(data):
    found, _ = run(data)
    dual, fused = found["calibration", "ECE"], found["calibration_fused", "ECE"]
    assert dual.estimate.value < 0.06 < fused.estimate.value
    assert dual.chance is None and dual.candidates is None


def test_one_split_is_parted_by_picture(data):
    found, kept = run(data, split="dev", fit_split=None)
    assert found["calibration", "Acc@1"].estimate.queries == 200
    assert kept["decision-calibration"]["data"]["splits"] == ["dev"]


@pytest.mark.parametrize("evaluator", [Calibration, partial(Robustness, space="text"), Verification])
def test_no_threshold_is_fitted_on_the_test(data, evaluator):
    with pytest.raises(UserError, match="fit_split=dev: the test itself"):
        evaluator(data, split="dev", fit_split="dev")


def test_what_is_not_trained_is_not_measured(data):
    assert {task for task, _ in run(data, {"itc_image", "itc_text"})[0]} == {"calibration"}
    assert {task for task, _ in run(data, {"fusion", "itm"})[0]} == {"calibration_fused"}
    assert run(data, {"itc_image"}) == ({}, {})


@pytest.mark.parametrize("index", [{"labels": None}, {"labels": torch.tensor([0, 2])}, {"rows": torch.zeros(2, 2)}])
def test_data_without_a_decision_to_make(data, index):
    data.index = lambda split: SimpleNamespace(**{"labels": torch.tensor([0, 1]), "rows": torch.zeros(2)} | index)
    with pytest.raises(UserError, match="split=test: a threshold needs statements of one picture"):
        Calibration(data)

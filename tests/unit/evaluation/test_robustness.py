import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crossvit.errors import UserError
from crossvit.evaluation.robustness import Robustness
from crossvit.evaluation.subject import Subject
from crossvit.objectives.matching import MatchingLoss
from crossvit.tasks.cross_modal import pair_logits
from tests.small import cross_modal, pairs, uniform

TRAINED = frozenset({"fusion", "itm"})
# each caption is true of one picture and false of another: neither side alone knows
STATEMENTS = pairs([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3], label=[1, 0, 0, 1, 1, 0, 0, 1])
EPS = [0.02, 0.1, 0.5]


def trained(seed: int):
    """Knows its statements by heart."""
    torch.manual_seed(seed)
    task = cross_modal({"itm": MatchingLoss(hard_negatives=False)})
    optimizer = torch.optim.Adam([p for p in task.model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        task(STATEMENTS, uniform())[0].backward()
        optimizer.step()
    model = task.model.eval()
    assert (pair_logits(model, STATEMENTS).argmax(1) == STATEMENTS.label).all()
    return model


@pytest.fixture(scope="module")
def model():
    return trained(0)


def normalize(image):
    return image


normalize.std = (0.5, 0.25, 0.25)


def loader(split):
    """Two batches; of split `wrong` with the labels turned round."""
    pairs_ = STATEMENTS._replace(label=1 - STATEMENTS.label) if split == "wrong" else STATEMENTS
    rows = {name: value for name, value in pairs_._asdict().items() if value is not None}
    return [pairs_._replace(**{name: value[part] for name, value in rows.items()}) for part in (slice(6), slice(6, 8))]


INDEX = SimpleNamespace(labels=np.array([0, 1]), rows=np.arange(2))
DATA = SimpleNamespace(pair_loader=loader, normalize=normalize, index=lambda split: INDEX)


def measure(model, trained=TRAINED, **options) -> tuple[dict, dict]:
    evaluator = Robustness(DATA, **{"eps": EPS, "steps": 5, "restarts": 2} | options)
    subject = Subject(model, trained, torch.device("cpu"))
    return {m.metric: m.estimate.value for m in evaluator(subject)}, subject.kept


@pytest.mark.parametrize("space", ["text", "patch", "pixel"])
def test_the_curve_falls_and_the_checks_are_kept(model, space):
    eps = [0.5, 4.0, 255.0] if space == "pixel" else EPS
    found, kept = measure(model, space=space, eps=eps)
    names = [f"eps {value:g}" for value in (0, *eps)]
    curve = [found[name] for name in names]
    assert curve[0] == 1.0
    assert curve == sorted(curve, reverse=True)
    assert found["unbounded"] == 0.0
    assert found[f"eps {eps[1]:g} 2 starts"] <= found[f"random {eps[1]:g}"]
    assert kept[f"robustness_{space}"]["checks"] == {
        "loss rises with eps": True,
        "loss rises with steps": True,
        "unbounded attack leaves next to nothing": True,
        "restarts find little more": True,
    }


def test_random_changes_of_the_same_size_do_less(model):
    found, _ = measure(model, space="patch", eps=[0.5])
    assert found["eps 0.5"] < found["random 0.5"]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_loss_is_compared_with_that_of_fewer_steps(model, steps):
    found, kept = measure(model, space="text", eps=[0.5], steps=steps, restarts=0)
    assert {name for name in found if name.endswith("steps")} == {f"eps 0.5 {k} steps" for k in (1, 3) if k < steps}
    assert kept["robustness_text"]["checks"]["loss rises with steps"]


def test_the_same_figures_again(model):
    first, _ = measure(model, space="text")
    assert measure(model, space="text")[0] == first


def test_a_limit(model):
    evaluator = Robustness(DATA, eps=[0.1], limit=7)
    batches = evaluator._batches(Subject(model, TRAINED, torch.device("cpu")), "test")
    assert [len(batch.index) for batch in batches] == [6, 1]


def test_an_attack_made_on_another_model_is_weaker(model):
    found, kept = measure(model, space="pixel", eps=[16.0], surrogate=trained(5))
    assert found["eps 16 transfer"] >= found["eps 16"]
    assert kept["robustness_pixel"]["checks"]["transfer is no stronger"]


def test_a_gradient_that_is_masked_is_found_out(model, monkeypatch):
    """Logits that are rounded have no gradient: the attack finds nothing, and the checks say so."""

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.round()

        @staticmethod
        def backward(ctx, grad):
            return torch.zeros_like(grad)

    plain = model.itm.forward
    monkeypatch.setattr(model.itm, "forward", lambda pooled: Step.apply(plain(pooled)))
    found, kept = measure(model, space="patch")
    assert found["unbounded"] == 1.0
    assert not kept["robustness_patch"]["checks"]["unbounded attack leaves next to nothing"]


def test_a_stage_without_a_trained_head_gives_nothing(model):
    assert measure(model, trained=frozenset({"itc_image"})) == ({}, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "words"}, "space=words: choose text, patch or pixel"),
        ({"eps": [0.2, 0.1]}, "ascending"),
        ({"eps": []}, "ascending"),
        ({"space": "text", "surrogate": object()}, "space=pixel"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        Robustness(DATA, **options)


def test_a_threshold_in_the_wrong_place_is_fitted_away(model):
    """A head that has learned of a world with few true pairs says false to all of these, and ranks them right."""
    shifted = copy.deepcopy(model)
    shifted.itm.bias.data[0] += 30
    plain, _ = measure(shifted, space="text", restarts=0)
    assert plain["eps 0"] == 0.5
    found, kept = measure(shifted, space="text", restarts=0, fit_split="dev")
    assert found["eps 0"] == 1.0 > found["eps 0.5"] and found["unbounded"] == 0.0
    assert (
        measure(shifted, space="text", restarts=0, fit_split="wrong")[0]["eps 0"] < 1.0
    )  # fitted there, not on the test
    assert kept["robustness_text"]["checks"]["unbounded attack leaves next to nothing"]


@pytest.mark.parametrize("changed", [{"labels": None}, {"labels": np.array([0, 2])}, {"rows": np.zeros((2, 2))}])
def test_pairs_that_are_no_statements_of_one_picture(changed):
    index = SimpleNamespace(**vars(INDEX) | changed)
    with pytest.raises(UserError, match="split=val: an attack needs statements of one picture"):
        Robustness(SimpleNamespace(index=lambda split: index), split="val")


def test_statements_about_one_picture_are_no_cases_of_their_own(model):
    def width(pictures) -> float:
        batch = STATEMENTS._replace(image_id=pictures)
        data = SimpleNamespace(**vars(DATA) | {"pair_loader": lambda split: [batch]})
        found = Robustness(data, space="text", eps=EPS, steps=2, restarts=0, fit_split=None)
        figures = {m.metric: m.estimate for m in found(Subject(half, TRAINED, torch.device("cpu")))}
        assert figures["eps 0"].value == 0.5
        return figures["eps 0"].high - figures["eps 0"].low

    half = copy.deepcopy(model)
    half.itm.bias.data[0] += 30  # false to everything: right of one label, wrong of the other
    assert width(STATEMENTS.label.clone()) > 1.2 * width(torch.arange(len(STATEMENTS.label)))

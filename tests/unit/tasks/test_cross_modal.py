"""The cross-modal task: what is trained, what is counted, and how the terms add up."""

import math

import pytest
import torch

from crossvit.data.batches import ImageBatch, TextBatch
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.matching import MatchingLoss, hard_pairs
from crossvit.objectives.relation import RelationLoss, TwoImageLoss
from crossvit.objectives.term import Term, TermOutput
from crossvit.tasks import cross_modal as module
from crossvit.tasks.base import parameter_groups
from crossvit.tasks.cross_modal import MAX_LOGIT_SCALE, CrossModalTask, pair_logits
from crossvit.tasks.pair_state import pair_state
from tests.small import FUSIONS, SETTINGS, cross_modal, cross_vit, pairs, uniform

LABELS = [0, 1, 1, 0, 1]
BATCHES = {
    "itc": pairs(range(5)),
    "sigmoid": pairs(range(5), negatives=1),
    "itc itm": pairs(range(5), negatives=2),
    "itm": pairs(range(5)),
    "relation": pairs(range(5), label=LABELS),
    "two_image": pairs(range(5), label=LABELS, two_images=True),
    "itc itm relation": pairs(range(5), label=LABELS, negatives=1),
    "itm mlm": pairs(range(5), label=[1] * 5),
    "itc dml cyclip distill": pairs(range(5)),
    "itc itm crossdual distill adversarial": pairs(range(5), negatives=2),
}
FUSED, CONTRASTIVE = {"fusion", "itm"}, {"itc_image", "itc_text", "logit_scale"}
TRAINED = {
    "itc": CONTRASTIVE,
    "sigmoid": CONTRASTIVE | {"logit_bias"},
    "itc itm": CONTRASTIVE | FUSED,
    "itm": FUSED,
    "relation": {"fusion", "relation"},
    "two_image": {"fusion", "two_image"},
    "itc itm relation": CONTRASTIVE | FUSED | {"relation"},
    "itm mlm": FUSED | {"mlm"},
    "itc dml cyclip distill": CONTRASTIVE,
    "itc itm crossdual distill adversarial": CONTRASTIVE | FUSED,
}
TOWERS = {"patch_encoder", "vision", "text_encoder"}


@pytest.mark.parametrize("objective", BATCHES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_trained_parameter_receives_a_gradient_and_no_other(fusion, objective):
    task = cross_modal(objective.split(), fusion)
    loss, _ = task(BATCHES[objective], uniform())
    loss.backward()
    for name, parameter in task.model.named_parameters():
        if name.split(".")[0] not in TRAINED[objective] | TOWERS:
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.requires_grad, name
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("objective", BATCHES)
def test_frozen_parts_are_not_in_the_optimiser(objective):
    task = cross_modal(objective.split())
    groups = parameter_groups(task.network, 1e-3, {})
    optimised = {id(parameter) for group in groups for parameter in group["params"]}
    assert optimised == {
        id(p) for n, p in task.model.named_parameters() if n.split(".")[0] in TRAINED[objective] | TOWERS
    }


class Never(Term):
    modules_used = ("relation",)

    def forward(self, state) -> TermOutput:
        raise AssertionError("a term of weight 0 was computed")


def test_a_term_of_weight_zero_is_not_computed():
    task = cross_modal({"itc": ContrastiveLoss(), "never": Never(0.0)})
    assert list(task.terms) == ["itc"]
    _, figures = task(pairs(range(4)))
    assert not any(name.startswith("never") for name in figures)
    assert not any(p.requires_grad for p in task.model.relation.parameters())


def test_all_weights_zero():
    with pytest.raises(ValueError, match="every weight is 0"):
        cross_modal({"itc": ContrastiveLoss(0.0)})
    with pytest.raises(ValueError, match="weight must be >= 0"):
        ContrastiveLoss(-1.0)


def test_weights_are_applied_and_both_figures_are_given():
    batch = pairs(range(5))
    alone = {
        name: cross_modal({name: term})(batch, uniform())[0].item()
        for name, term in (("itc", ContrastiveLoss()), ("itm", MatchingLoss()))
    }
    task = cross_modal({"itc": ContrastiveLoss(0.25), "itm": MatchingLoss(3.0)})
    loss, figures = task(batch, uniform())
    for name, weight in (("itc", 0.25), ("itm", 3.0)):
        assert figures[f"{name}/loss"].item() == pytest.approx(alone[name], rel=1e-5)
        assert figures[f"{name}/weighted"].item() == pytest.approx(weight * alone[name], rel=1e-5)
    assert figures["loss"].item() == loss.item() == pytest.approx(0.25 * alone["itc"] + 3 * alone["itm"], rel=1e-5)
    assert figures["itc/logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-4)


def test_the_gradient_has_the_weight_too():
    batch, grads = pairs(range(5)), []
    for weight in (1.0, 4.0):
        task = cross_modal({"itc": ContrastiveLoss(weight)})
        task(batch)[0].backward()
        grads.append(task.model.itc_text.weight.grad)
    assert torch.allclose(4 * grads[0], grads[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("start", "end"), [(9.0, MAX_LOGIT_SCALE), (-2.0, 0.0), (3.0, 3.0)])
def test_the_logit_scale_is_clamped_after_each_step(start, end):
    task = cross_modal(["itc"])
    task.model.logit_scale.data.fill_(start)
    task.model.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)
    assert task.model.logit_scale.item() == pytest.approx(end)
    assert math.exp(MAX_LOGIT_SCALE) == pytest.approx(100, rel=1e-3)


def test_a_batch_of_one_unique_image():
    task = cross_modal(["itc", "itm"])
    loss, figures = task(pairs([3] * 4), uniform())
    loss.backward()
    assert torch.isfinite(loss)
    # every caption is a positive of the picture: log 4 is the best that the loss can do; no row has a negative
    assert figures["itc/loss"].item() >= math.log(4) - 1e-5
    assert figures["itm/skipped"] == 8
    assert figures["itm/pairs"] == 4
    assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.requires_grad)


def test_a_batch_of_one_row():
    task = cross_modal(["itc", "itm"])
    loss, figures = task(pairs([0]), uniform())
    loss.backward()
    assert figures["itc/loss"].item() == pytest.approx(0, abs=1e-6)
    assert figures["itm/pairs"] == 1


def test_rows_whose_batch_has_no_negative_are_skipped_and_counted():
    # picture 0 knows every caption of the batch, picture 1 only caption 3; caption 3 knows both pictures
    batch = pairs([0, 0, 0, 0, 1], text_id=[0, 1, 2, 3, 3])
    _, figures = cross_modal(["itm"])(batch, uniform())
    # no caption for the four rows of picture 0, no picture for the two rows of caption 3
    assert figures["itm/skipped"] == 4 + 2
    assert figures["itm/pairs"] == 5 + 1 + 3


def test_only_true_pairs_draw_negatives():
    batch = pairs([0, 1, 2, 3], label=[1, 0, 1, 0])
    _, figures = cross_modal(["itm"])(batch, uniform())
    assert figures["itm/pairs"] == 4 + 2 + 2
    assert figures["itm/skipped"] == 0
    _, figures = cross_modal(["itm"])(pairs([0, 0], label=[1, 0]), uniform())
    assert figures["itm/skipped"] == 2  # of the true row alone: the false one would draw none anyway


def test_hard_negatives_never_hold_a_positive():
    """Every pair the batch speaks of, true or not, is left out; a row is skipped only where nothing is left to draw."""
    task = cross_modal(["itm"]).eval()
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        image_id, text_id = (torch.randint(0, 4, (6,), generator=rng).tolist() for _ in range(2))
        state = pair_state(task.model, pairs(image_id, text_id, seed=seed), uniform(seed))
        by_text, by_image = hard_pairs(state).values()
        known = set(zip(image_id, text_id, strict=True))
        for row in range(6):
            texts = [j for j in range(6) if torch.equal(by_text.pooled[row], state.text_pooled[j])]
            images = [j for j in range(6) if torch.equal(by_image.visual[row], state.visual[j])]
            assert torch.equal(by_text.visual[row], state.visual[row])
            assert torch.equal(by_image.pooled[row], state.text_pooled[row])
            if by_text.counted[row]:
                assert (image_id[row], text_id[texts[0]]) not in known
            if by_image.counted[row]:
                assert (image_id[images[0]], text_id[row]) not in known
            assert by_text.counted[row] == any((image_id[row], t) not in known for t in text_id)
            assert by_image.counted[row] == any((i, text_id[row]) not in known for i in image_id)


class TestGeneratedNegatives:
    def test_each_is_a_pair_to_reject(self):
        _, figures = cross_modal({"itm": MatchingLoss(hard_negatives=False)})(pairs(range(4), negatives=3))
        assert figures["itm/pairs"] == 4 + 4 * 3

    def test_rows_without_any_add_nothing(self):
        """The filler of such a row is an empty caption: it must not be learned as a false one."""
        task = cross_modal({"itc": ContrastiveLoss(), "itm": MatchingLoss()})
        some = pairs(range(4), negatives=2, without_negatives=[1, 3])
        loss, figures = task(some, uniform())
        assert figures["itm/pairs"] == 4 + 2 * 4 + 2 * 2
        changed = some.negatives.clone()
        changed[[1, 3]] = 7
        again, _ = task(some._replace(negatives=changed), uniform())
        assert again.item() == pytest.approx(loss.item(), abs=1e-7)
        none = pairs(range(4), negatives=2, without_negatives=range(4))
        bare = none._replace(negatives=None, negatives_mask=None)
        assert task(none, uniform())[0].item() == pytest.approx(task(bare, uniform())[0].item(), abs=1e-6)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.requires_grad)

    def test_their_features_are_not_computed_where_no_term_asks_for_them(self, monkeypatch):
        seen = []
        batch = pairs(range(4), negatives=2)
        original = module.pair_state
        monkeypatch.setattr(
            module, "pair_state", lambda model, batch, *rest: seen.append(batch) or original(model, batch, *rest)
        )
        off = {"itc": ContrastiveLoss(generated_negatives=False), "itm": MatchingLoss(generated_negatives=False)}
        with_them, without = cross_modal(["itc"])(batch)[0], cross_modal(off)(batch, uniform())[1]["itc/loss"]
        assert seen[0].negatives is not None
        assert seen[1].negatives is None
        assert with_them > without  # more wrong answers, a greater loss


class TestRelation:
    def test_k_ways(self):
        task = cross_modal(["relation"], num_relations=5)
        batch = pairs(range(5), label=[4, 3, 2, 1, 0])
        loss, figures = task(batch)
        assert loss.item() == pytest.approx(math.log(5), abs=0.5)
        assert pair_logits(task.model, batch, relation=True).shape == (5, 5)
        assert pair_logits(task.model, batch).shape == (5, 2)
        assert 0 <= figures["relation/accuracy"] <= 1

    def test_needs_labels(self):
        with pytest.raises(ValueError, match="needs labelled pairs"):
            cross_modal(["relation"])(pairs(range(3)))
        with pytest.raises(ValueError, match="two images"):
            cross_modal(["two_image"])(pairs(range(3), label=[0, 1, 0]))

    def test_two_images_are_told_apart(self):
        task = cross_modal(["two_image"]).eval()
        batch = pairs(range(3), label=[0, 1, 1], two_images=True)
        logits = pair_logits(task.model, batch)
        swapped = pair_logits(task.model, batch._replace(image=batch.image.flip(1)))
        assert logits.shape == (3, 2)
        assert not torch.allclose(logits, swapped, atol=1e-4)
        loss, _ = task(batch)
        assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.label).item(), abs=1e-5)

    def test_the_second_picture_reaches_the_patch_encoder(self):
        task = cross_modal({"two_image": TwoImageLoss()})
        batch = pairs(range(3), label=[0, 1, 1], two_images=True)
        image = batch.image.requires_grad_()
        task(batch._replace(image=image))[0].backward()
        assert (image.grad.flatten(2).abs().sum(2) > 0).all()


class TestValidation:
    @pytest.fixture
    def task(self, monkeypatch):
        task = cross_modal({"itc": ContrastiveLoss(), "relation": RelationLoss()})
        task.logged = {}
        monkeypatch.setattr(task, "log", lambda name, value, **_: task.logged.__setitem__(name, float(value)))
        return task.eval()

    def test_retrieval_by_hand(self, task):
        """Embeddings that are set: picture 0 finds its caption, picture 1 ranks it second."""
        image = torch.eye(3)[:2]
        text = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.5, 0.0]])  # captions of pictures 0 and 1
        task.val_images.update(torch.arange(2), embedding=image, image_id=torch.tensor([10, 11]))
        task.val_texts.update(
            torch.arange(2), embedding=text, image_id=torch.tensor([10, 11]), text_id=torch.tensor([0, 1])
        )
        task.on_validation_epoch_end()
        assert task.logged == {"val/i2t/acc@1": 1.0, "val/i2t/acc@5": 1.0, "val/t2i/acc@1": 0.5, "val/t2i/acc@5": 1.0}
        task.logged.clear()
        task.on_validation_epoch_end()  # rows of the epoch before are gone
        assert task.logged == {}

    def test_each_kind_of_batch_goes_where_it_belongs(self, task):
        batch = pairs(range(4), label=[0, 1, 0, 1])
        task.validation_step(batch, 0)
        task.validation_step(ImageBatch(batch.image, batch.image_id, batch.index), 0, 1)
        task.validation_step(TextBatch(batch.tokens, batch.token_mask, batch.image_id, batch.text_id, batch.index), 0)
        task.on_validation_epoch_end()
        assert set(task.logged) == {"val/accuracy", *(f"val/{d}/acc@{k}" for d in ("i2t", "t2i") for k in (1, 5))}
        logits = pair_logits(task.model, batch, relation=True)
        assert task.logged["val/accuracy"] == pytest.approx((logits.argmax(1) == batch.label).float().mean().item())


def test_drawing_is_a_function_of_seed_epoch_and_batch(monkeypatch):
    seen = []
    task = cross_modal(["itm"], seed=5)
    monkeypatch.setattr(task, "log_figures", lambda figures: None)
    original = CrossModalTask.losses
    monkeypatch.setattr(
        CrossModalTask,
        "losses",
        lambda self, batch, uniform, chunks: seen.append(uniform(3)) or original(self, batch, uniform, chunks),
    )
    batch = pairs(range(3))
    for batch_idx in (0, 1, 0):
        task.training_step(batch, batch_idx)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    task.seed = 6
    task.training_step(batch, 0)
    assert not torch.equal(seen[0], seen[3])


def test_provides_everything():
    task = CrossModalTask(cross_vit(), {"itc": ContrastiveLoss()}, **SETTINGS)
    assert set(task.export()) == set(task.model.state_dict())
    assert all(name.startswith(task.provides) for name in task.export())

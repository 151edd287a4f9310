"""Two and three gloo processes give the loss, the gradients, the drawn negatives and the metrics of one."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from crossvit.data.batches import ImageBatch, PairBatch, TextBatch
from crossvit.distributed import gather, global_rows
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.classification import ClassificationLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import CrossDualLoss, CyclicLoss, DistillationLoss, MutualLearningLoss
from crossvit.objectives.masked import MaskedLanguageLoss
from crossvit.objectives.matching import MatchingLoss, hard_pairs
from crossvit.objectives.relation import RelationLoss, TwoImageLoss
from crossvit.objectives.sigmoid import SigmoidLoss
from crossvit.tasks.cross_modal import CrossModalTask
from crossvit.tasks.pair_state import pair_state
from crossvit.tasks.visual_transformer import VisualTransformerTask
from tests.distributed import run_distributed
from tests.small import SETTINGS, cross_vit, pairs, patch_encoder, uniform, visual_transformer

ROWS = range(12)
SHARED = [0, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 8]  # some rows show one picture
CASES = {
    "itc": ({"itc": ContrastiveLoss}, pairs(SHARED)),
    "itc with equal captions and generated negatives": (
        {"itc": ContrastiveLoss},
        pairs(SHARED, [0, 1, 2, 3, 4, 5, 5, 0, 6, 7, 8, 9], negatives=2, without_negatives=[3, 4, 10]),
    ),
    "itm with hard and generated negatives": (
        {"itm": MatchingLoss},
        pairs(SHARED, negatives=2, without_negatives=[0, 3, 7]),
    ),
    "itc and itm, labelled, all true rows on one rank": (
        {"itc": ContrastiveLoss, "itm": MatchingLoss},
        pairs(SHARED, label=[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
    ),
    "itm where rows have no negative": (
        {"itm": MatchingLoss},
        # picture 0 knows every caption; caption 7 knows every picture
        pairs([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7]),
    ),
    "one unique image": ({"itc": ContrastiveLoss, "itm": MatchingLoss}, pairs([0] * 12)),
    "sigmoid": ({"sigmoid": SigmoidLoss}, pairs(SHARED, negatives=2, without_negatives=[3, 4, 10])),
    "mutual learning and consistent geometry, labelled": (
        {"itc": ContrastiveLoss, "dml": MutualLearningLoss, "cyclip": CyclicLoss},
        pairs(SHARED, label=[1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1]),
    ),
    "momentum teacher": (
        {"itc": ContrastiveLoss, "itm": MatchingLoss, "distill": partial(DistillationLoss, matching=True)},
        pairs(SHARED, negatives=2, without_negatives=[0, 3, 7]),
    ),
    "queue": ({"itc": partial(ContrastiveLoss, queue_size=20)}, pairs(SHARED)),
    "fused scorer and towers": (
        {"itc": ContrastiveLoss, "itm": MatchingLoss, "crossdual": CrossDualLoss},
        pairs(SHARED, negatives=2, without_negatives=[0, 3, 7]),
    ),
    "masked words": (
        {"itm": MatchingLoss, "mlm": MaskedLanguageLoss},
        pairs(SHARED, label=[1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1]),
    ),
    "pgd on matching": (
        {"itm": MatchingLoss, "adversarial": partial(AdversarialLoss, steps=2, init="uniform")},
        pairs(SHARED, negatives=1, without_negatives=[0, 3, 7]),
    ),
    "random direction, pixels": (
        {
            "itm": MatchingLoss,
            "adversarial": partial(AdversarialLoss, direction="random", spaces=["pixel"], norm="linf"),
        },
        pairs(SHARED),
    ),
    "villa on the contrastive term": (
        {"itc": ContrastiveLoss, "adversarial": partial(AdversarialLoss, algorithm="villa", attack="itc", steps=2)},
        pairs(SHARED),
    ),
    "vat on two images": (
        {"two_image": TwoImageLoss, "adversarial": partial(AdversarialLoss, algorithm="vat", attack="two_image")},
        pairs(ROWS, label=[i % 2 for i in ROWS], two_images=True),
    ),
    "relation": ({"relation": RelationLoss}, pairs(ROWS, label=[i % 3 for i in ROWS])),
    "two images": ({"two_image": TwoImageLoss}, pairs(ROWS, label=[i % 2 for i in ROWS], two_images=True)),
}


def share(batch: PairBatch, rank: int, world: int) -> PairBatch:
    """A rank's rows as its own loader gives them: captions cut to the longest of these rows."""
    rows = batch._replace(**{k: v[rank::world] for k, v in batch._asdict().items() if v is not None})
    longest = int(rows.token_mask.sum(1).max())
    rows = rows._replace(tokens=rows.tokens[:, :longest], token_mask=rows.token_mask[:, :longest])
    if rows.negatives is not None:
        longest = max(1, int(rows.negatives_mask.sum(2).max()))
        rows = rows._replace(negatives=rows.negatives[..., :longest], negatives_mask=rows.negatives_mask[..., :longest])
    return rows


def averaged(loss, module, world: int) -> tuple[float, dict]:
    """The global loss, and the gradients as data-parallel training averages them."""
    loss.backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    value = loss.detach().clone()
    if world > 1:
        for tensor in (value, *grads.values()):
            dist.all_reduce(tensor)
            tensor /= world
    return value.item(), grads


def train_step(name: str, rank: int, world: int) -> dict:
    terms, batch = CASES[name]
    weights = {"itc": 0.7, "itm": 1.3}
    model = cross_vit(num_relations=3)
    task = CrossModalTask(model, {key: term(weights.get(key, 1.0)) for key, term in terms.items()}, **SETTINGS)
    local = share(batch, rank, world)
    if task.teacher is not None:  # one that is not its student, and a queue that holds something
        generator = torch.Generator().manual_seed(1)
        for parameter in task.teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            task(share(pairs(range(20, 32), seed=3), rank, world), uniform(5))
    loss, figures = task(local, uniform(4))
    found = {"loss": averaged(loss, model, world)}
    if "itm" in terms:
        found["pairs"] = figures["itm/pairs"].item()
        state = pair_state(model, local, uniform(4))
        with torch.no_grad():
            by_text, by_image = hard_pairs(state).values()
        if local.label is None:  # every row draws: in global order the drawn features are those of one process
            found["drawn"] = [gather(x) for x in (by_text.pooled, by_image.visual, by_text.counted, by_image.counted)]
    return found


def classify(rank: int, world: int) -> tuple[float, dict]:
    torch.manual_seed(0)
    task = VisualTransformerTask(patch_encoder(), visual_transformer(), 5, loss=ClassificationLoss(), **SETTINGS)
    task.log_figures = lambda figures: None
    image = pairs(ROWS).image[rank::world]
    label = torch.arange(12)[rank::world] % 5
    return averaged(task.training_step(ImageBatch(image, label, global_rows(len(label))), 0), task, world)


def validate(rank: int, world: int) -> dict[str, float]:
    """Ranks see different numbers of rows: 11 captions, 7 pictures, 5 statements."""
    task = CrossModalTask(cross_vit(), {"itc": ContrastiveLoss(), "relation": RelationLoss()}, **SETTINGS).eval()
    logged = {}
    task.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    texts = pairs([0, 1, 2, 3, 4, 5, 6, 6, 5, 4, 3])
    images, statements = pairs(range(7)), pairs(range(5), label=[0, 1, 1, 0, 1])
    with torch.no_grad():
        mine = share(texts, rank, world)
        task.validation_step(TextBatch(mine.tokens, mine.token_mask, mine.image_id, mine.text_id, mine.index), 0)
        for start in (0, 4):  # two steps, of which a rank may lack the second
            part = images.index[start : start + 4][rank::world]
            if len(part):
                task.validation_step(ImageBatch(images.image[part], images.image_id[part], part), 0, 1)
        task.validation_step(share(statements, rank, world), 0)
    task.on_validation_epoch_end()
    return logged


def everything(rank: int, world: int) -> dict:
    return {name: train_step(name, rank, world) for name in CASES} | {
        "classify": classify(rank, world),
        "validate": validate(rank, world),
    }


@pytest.fixture(scope="module")
def alone() -> dict:
    return everything(0, 1)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=["2 processes", "3 processes"])
def ranks(request) -> list[dict]:
    """What each rank found: one spawn for all the checks."""
    return run_distributed(everything, request.param)


def assert_same(found: tuple[float, dict], expected: tuple[float, dict]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    assert set(found[1]) == set(expected[1])
    greatest = max(grad.abs().max().item() for grad in expected[1].values())
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=2e-6 * max(1.0, greatest), msg=name)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case, ranks, alone):
    for found in ranks:
        assert_same(found[case]["loss"], alone[case]["loss"])
        assert found[case].get("pairs") == alone[case].get("pairs")
        for mine, theirs in zip(found[case].get("drawn", ()), alone[case].get("drawn", ()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_cases_are_what_they_say(alone):
    assert alone["itm with hard and generated negatives"]["pairs"] == 12 * 3 + 2 * 9
    assert alone["itc and itm, labelled, all true rows on one rank"]["pairs"] == 12 + 2 + 2
    assert alone["one unique image"]["pairs"] == 12
    skipped = alone["itm where rows have no negative"]
    assert skipped["pairs"] == 12 + 4 + 7


def test_classification(ranks, alone):
    for found in ranks:
        assert_same(found["classify"], alone["classify"])


def test_validation_figures(ranks, alone):
    assert len(alone["validate"]) == 5
    for found in ranks:
        assert found["validate"] == pytest.approx(alone["validate"], abs=1e-6)

"""A CrossViT of 32 px pictures that takes milliseconds, and batches for it."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from crossvit.data.batches import PairBatch
from crossvit.models.conv_stem import ConvStem
from crossvit.models.crossvit import CrossViT
from crossvit.models.fusion import CoAttentionFusion, LateFusion, MergedFusion, NoFusion, TextSideFusion
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.text_encoder import TextEncoder
from crossvit.models.visual_transformer import VisualTransformer
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.imitation import CrossDualLoss, CyclicLoss, DistillationLoss, MutualLearningLoss
from crossvit.objectives.masked import MaskedLanguageLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.objectives.relation import RelationLoss, TwoImageLoss
from crossvit.objectives.sigmoid import SigmoidLoss
from crossvit.objectives.term import Term
from crossvit.tasks.cross_modal import CrossModalTask
from crossvit.tasks.schedules import cosine

FUSIONS = {
    "co_attention": CoAttentionFusion,
    "late": LateFusion,
    "merged": MergedFusion,
    "text_side": TextSideFusion,
    "none": NoFusion,
}
TERMS = {
    "itc": ContrastiveLoss,
    "sigmoid": SigmoidLoss,
    "itm": MatchingLoss,
    "relation": RelationLoss,
    "two_image": TwoImageLoss,
    "mlm": MaskedLanguageLoss,
    "dml": MutualLearningLoss,
    "cyclip": CyclicLoss,
    "distill": DistillationLoss,
    "crossdual": CrossDualLoss,
    "adversarial": AdversarialLoss,
}
WORDS, EOS = 50, 3
SETTINGS = {"optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1), "schedule": cosine}


def patch_encoder() -> PatchEncoder:
    return PatchEncoder(ConvStem((8, 16, 16), groups=4), 16, (4, 4))


def visual_transformer() -> VisualTransformer:
    return VisualTransformer(16, 2, 2, (4, 4))


def cross_vit(fusion: str = "co_attention", seed: int = 0, **arguments) -> CrossViT:
    torch.manual_seed(seed)
    sizes = {} if fusion == "none" else {"depth": 2, "heads": 2}
    text = TextEncoder(WORDS, 20, 12, 2, 2, eot_id=EOS)
    return CrossViT(
        patch_encoder(), visual_transformer(), text, FUSIONS[fusion](16, 12, **sizes), embed_dim=8, **arguments
    )


def cross_modal(terms: dict[str, Term] | Iterable[str], fusion: str = "co_attention", **arguments) -> CrossModalTask:
    """A task on these terms, or on the terms of these names with weight 1."""
    terms = terms if isinstance(terms, dict) else {name: TERMS[name]() for name in terms}
    num_relations = arguments.pop("num_relations", 2)
    return CrossModalTask(cross_vit(fusion, num_relations=num_relations), terms, **SETTINGS, **arguments)


def captions(lengths: Iterable[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows `cls words eos pad...` of these numbers of real tokens, and their mask."""
    lengths = list(lengths)
    tokens = torch.randint(4, WORDS, (len(lengths), max(lengths)), generator=generator)
    tokens[:, 0] = 2
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = EOS
        tokens[row, length:] = 0
    return tokens, torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]


def pairs(
    image_id: Iterable[int],
    text_id: Iterable[int] | None = None,
    label: Iterable[int] | None = None,
    negatives: int = 0,
    without_negatives: Iterable[int] = (),
    two_images: bool = False,
    seed: int = 0,
) -> PairBatch:
    """Pairs with captions of 4 to 10 tokens. Rows of one image_id show one picture, rows of one text_id hold one caption."""
    image_id = torch.tensor(list(image_id))
    size = len(image_id)
    text_id = torch.arange(size) if text_id is None else torch.tensor(list(text_id))
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(int(image_id.max()) + 1, *((2,) if two_images else ()), 3, 32, 32, generator=generator)
    words, mask = captions([4 + 3 * i % 7 for i in range(int(text_id.max()) + 1)], generator)
    false_words, false_mask = captions([3 + 2 * i % 5 for i in range(size * negatives)] or [3], generator)
    if negatives:
        false_words, false_mask = (x.view(size, negatives, -1) for x in (false_words, false_mask))
        false_mask[list(without_negatives)] = False
    return PairBatch(
        image=picture[image_id],
        tokens=words[text_id],
        token_mask=mask[text_id],
        image_id=image_id,
        text_id=text_id,
        index=torch.arange(size),
        label=None if label is None else torch.tensor(list(label)),
        negatives=false_words if negatives else None,
        negatives_mask=false_mask if negatives else None,
    )


def uniform(seed: int = 0) -> Callable[[int], Tensor]:
    """Numbers for drawing negatives, the same at every call."""
    return lambda n, stream=0: torch.rand(n, generator=torch.Generator().manual_seed(seed + stream))

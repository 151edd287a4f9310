"""What tests of loss terms share: a state without a model, and a check of gradients in double precision."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crossvit.objectives.term import PairState


def hand_state(
    image: Tensor, text: Tensor, scale: float = 1.0, bias: float = 0.0, image_id=None, text_id=None, **fields
) -> PairState:
    """Pairs of these embeddings (b, E); row i is picture i and caption i, but for the ids that are given."""
    rows = torch.arange(len(image))
    values = {
        "visual": image[:, None],
        "text": text[:, None],
        "text_pooled": text,
        "text_mask": torch.ones(len(text), 1, dtype=torch.bool),
        "image_embedding": image,
        "text_embedding": text,
        "logit_scale": torch.tensor(math.log(scale), requires_grad=True),
        "logit_bias": torch.tensor(bias, requires_grad=True),
        "tokens": rows[:, None],
        "image_id": rows if image_id is None else torch.as_tensor(image_id),
        "text_id": rows if text_id is None else torch.as_tensor(text_id),
        "label": None,
        "fuse": lambda *features: None,
        "fuse_words": lambda *features: None,
        "match_logits": lambda pooled: None,
        "relation_logits": lambda pooled: None,
        "two_image_logits": lambda first, second: None,
    }
    return PairState(**values | fields)


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random rows of length 1."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def gradient_is_right(loss: Callable, formula: Callable, inputs: Sequence[Tensor]) -> None:
    """`formula` restates `loss` in double precision: its gradient passes finite differences, and the loss has its value and gradient."""
    double = [x.detach().double().requires_grad_() for x in inputs]
    single = [x.detach().float().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(formula, double)
    expected, value = formula(*double), loss(*single)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    expected.sum().backward()
    value.sum().backward()
    for mine, theirs in zip(single, double, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)

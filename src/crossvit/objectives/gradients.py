"""Gradients that are computed within a training step, on the way to its loss."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    arriving: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` outside of autocast, where a Trainer's own backward pass runs; None for inputs that have no part.

    Within it the parts of a forward pass that were kept in fp32 would be differentiated in half precision.
    """
    with torch.autocast(inputs[0].device.type, enabled=False):
        return torch.autograd.grad(outputs, inputs, arriving, retain_graph=retain_graph, allow_unused=True)


class KnownGradient(torch.autograd.Function):
    """A value whose gradient is known already, so that automatic optimisation has no second way to it: backward gives each parameter its
    own, times what arrives."""

    @staticmethod
    def forward(ctx, value: Tensor, grads: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx, arriving: Tensor) -> tuple:
        return None, None, *(arriving * grad for grad in ctx.grads)

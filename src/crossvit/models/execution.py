"""How a model runs, not what it computes: compiled, with activations computed again, pictures in channels-last memory.

All of it works on the parts in place: no name of a parameter changes, so weights are stored, handed on and resumed as ever.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossvit.models.patch_encoder import PatchEncoder


class Execution(NamedTuple):
    """compile: a mode of torch.compile, or None. checkpoint_activations: Transformer blocks keep their inputs alone and run once more in
    the backward pass (Chen et al. 2016). channels_last: the CNN's pictures and weights lie pixel by pixel, not plane by plane.
    """

    compile: str | None = None
    checkpoint_activations: bool = False
    channels_last: bool = False

    def apply(self, network: nn.Module, backend: str | Callable = "inductor") -> None:
        """Changes how `network` runs, once. backend: of torch.compile."""
        if self.channels_last:
            channels_last(network)
        if self.checkpoint_activations:
            for block in blocks(network):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if self.compile is not None:
            compile_parts(network, self.compile, backend)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The Transformer blocks of the Visual Transformer, the text encoder and the fusion, whoever wrote them: the outermost members of every
    ModuleList outside of the CNN."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif not isinstance(child, PatchEncoder):
            yield from blocks(child)


def cnns(network: nn.Module) -> list[nn.Module]:
    """The backbones of the patch encoders."""
    return [module.backbone for module in network.modules() if isinstance(module, PatchEncoder)]


def channels_last(network: nn.Module) -> None:
    """Weights of the CNN, and what it is given, in channels-last memory; same values, faster convolutions on many devices."""
    for cnn in cnns(network):
        cnn.to(memory_format=torch.channels_last)
        cnn.register_forward_pre_hook(_to_channels_last)


def _to_channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x for x in inputs
    )


def compile_parts(network: nn.Module, mode: str, backend: str | Callable = "inductor") -> None:
    """torch.compile of the CNN and of each Transformer block.

    Not of the whole: what lies between them (drawn negatives, gathered rows, an adversary that differentiates in mid-step) would break the
    graph at many places, and blocks of one shape share their code. A term that differentiates a graph twice needs its buffers kept.
    """
    import torch._functorch.config as functorch

    functorch.donated_buffer = False
    options = {"mode": mode} if backend == "inductor" else {}
    for part in [*cnns(network), *blocks(network)]:
        part.compile(backend=backend, **options)

"""What a training step costs, counted and not estimated: FLOPs, and pair-passes as a unit that every objective can be compared in."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from crossvit.data.batches import PairBatch
from crossvit.report.atomic import write_atomically
from crossvit.sharding import is_sharded

log = logging.getLogger(__name__)

COMPUTE = "compute.json"


class ComputeCount(L.Callback):
    """Counts the FLOPs of the first `batches` training batches, everything an objective adds included: negatives, inner steps, a teacher.

    One pair-pass = forward and backward of one matched pair through both towers, the fusion and the matching head. It is counted on a
    copy of the network, on the same batches. Nothing that training reads is touched: parameters, gradients, BatchNorm statistics and
    random numbers stay as they are.

    A step whose figures are logged has the norms of the terms' gradients in it as well: `batches` below `trainer.log_every_n_steps` keeps
    them out.

    Leaves `<trainer.default_root_dir>/compute.json`: flops_per_step and pair_passes_per_step of one optimizer step over all devices, and
    flops_per_pair (both of the latter None where a batch holds no pairs, or the network is sharded). The optimizer's own arithmetic is not
    counted.
    """

    def __init__(self, batches: int = 3) -> None:
        self.batches = batches
        self._counter: FlopCounterMode | None = None
        self._steps: list[int] = []
        self._units: list[float] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if len(self._steps) >= self.batches:
            return
        if isinstance(batch, PairBatch) and not is_sharded(pl_module):
            with trainer.precision_plugin.forward_context():
                self._units.append(pair_flops(pl_module.network, batch))
        self._counter = flop_counter()
        self._counter.__enter__()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counter = self._close()
        if counter is not None:
            self._steps.append(counter.get_total_flops())
            if len(self._steps) == self.batches:
                self._write(trainer)

    def on_train_batch_end(self, *args: Any) -> None:
        self._close()  # a step that ended without a backward pass

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if 0 < len(self._steps) < self.batches:
            self._write(trainer)

    def on_exception(self, *args: Any) -> None:
        self._close()

    def state_dict(self) -> dict[str, list]:
        return {"steps": self._steps, "units": self._units}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """A resumed stage counts what is lacking: other batches may be longer."""
        self._steps, self._units = list(state_dict["steps"]), list(state_dict["units"])

    def _close(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
        return counter

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        batches = trainer.accumulate_grad_batches * trainer.world_size  # of one optimizer step
        flops = batches * sum(self._steps) / len(self._steps)
        unit = sum(self._units) / len(self._units) if self._units else None
        passes = flops / unit if unit else None
        found = {"flops_per_step": flops, "pair_passes_per_step": passes, "flops_per_pair": unit}
        path = Path(trainer.default_root_dir) / COMPUTE
        fresh = not path.is_file()
        write_atomically(path, json.dumps(found).encode())
        if fresh:
            log.info("a step: %.3g FLOPs%s", flops, f", {passes:.1f} pair-passes" if passes else "")


def flop_counter() -> FlopCounterMode:
    """Counts matrix products, convolutions and attention, forward and backward, 2 FLOPs a multiply-add."""
    aten = torch.ops.aten  # whose attention on the CPU torch's own table leaves out
    forward, backward = (
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
    )
    counter = FlopCounterMode(display=False, custom_mapping={forward: _attention, backward: _attention_backward})
    counter.mod_tracker = _WholeOnly()
    return counter


class _WholeOnly:
    """In the place of the tracker that counts module by module: its hooks do not stand a second differentiation of the same graph, as of
    the terms' gradient norms."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *args: Any) -> None: ...


def _attention(query: tuple, key: tuple, value: tuple, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: tuple, query: tuple, key: tuple, value: tuple, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def pair_flops(network: nn.Module, batch: PairBatch) -> float:
    """FLOPs of a forward and a backward pass of one pair of `batch` through a copy of a `CrossViT`: towers, fusion, matching head.

    What is frozen in the towers stays so; fusion and matching head are counted as trained, whatever the objective makes of them.
    """
    image = batch.image[:, 0] if batch.image.dim() == 5 else batch.image
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), flop_counter() as counter:
        _pair_pass(_without_memory(copy.deepcopy(network)), image, batch.tokens, batch.token_mask)
    return counter.get_total_flops() / len(image)


def _without_memory(network: nn.Module) -> nn.Module:
    """A frozen encoder that remembers its answers computes them here."""
    for module in network.modules():
        if getattr(module, "_memory", None) is not None:
            module._memory = None
    return network


def _pair_pass(network: nn.Module, image: Tensor, tokens: Tensor, mask: Tensor) -> None:
    for part in (network.fusion, network.itm):
        part.requires_grad_(True)
    visual, text = network.visual_features(image), network.text_features(tokens, mask)
    matching = network.match_logits(network.fuse(visual, text, pooled_only=True)).sum()
    cosine = (network.embed_visual(visual) * network.embed_text(text)).sum()
    (matching + cosine).float().backward()

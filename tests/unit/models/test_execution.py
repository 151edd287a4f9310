"""Compiled, checkpointed and channels-last networks compute the same, and do what their names say."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from crossvit.models.conv_stem import ConvStem
from crossvit.models.execution import Execution, blocks, cnns
from crossvit.models.fusion import StreamBlock, TwoStreamLayer
from crossvit.models.open_clip_text import OpenCLIPTextEncoder
from crossvit.models.transformer import TransformerBlock
from crossvit.objectives.adversarial import AdversarialLoss
from crossvit.objectives.contrastive import ContrastiveLoss
from crossvit.objectives.matching import MatchingLoss
from crossvit.tasks.cross_modal import CrossModalTask
from tests.small import FUSIONS, SETTINGS, cross_vit, pairs, uniform

BATCH = pairs([0, 1, 2, 2, 3, 4], negatives=1)


class Compiler:
    """A backend of torch.compile that changes nothing and counts the graphs that it is given, and how often they are run."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


def task(fusion: str = "co_attention", dropout: float = 0.0) -> CrossModalTask:
    model = cross_vit(fusion)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if hasattr(module, "dropout"):
            module.dropout = dropout
    terms = {"itc": ContrastiveLoss(), "itm": MatchingLoss(), "adversarial": AdversarialLoss(steps=2, init="uniform")}
    return CrossModalTask(model, terms, **SETTINGS)


def step(one: CrossModalTask) -> tuple[float, dict]:
    torch.manual_seed(5)
    loss, _ = one(BATCH, uniform(1))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in one.named_parameters()}


def assert_same(found: tuple[float, dict], expected: tuple[float, dict], **tolerance) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert list(found[1]) == list(expected[1])  # names too
    for name, grad in expected[1].items():
        torch.testing.assert_close(found[1][name], grad, **(tolerance or {"rtol": 1e-4, "atol": 1e-5}), msg=name)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_blocks_of_each_fusion(fusion):
    model = cross_vit(fusion)
    kind = {
        "co_attention": TwoStreamLayer,
        "late": TwoStreamLayer,
        "merged": TransformerBlock,
        "text_side": StreamBlock,
    }
    expected = [TransformerBlock] * 4 + ([] if fusion == "none" else [kind[fusion]] * 2)
    assert [type(block) for block in blocks(model)] == expected
    assert [type(cnn) for cnn in cnns(model)] == [ConvStem]


def test_blocks_of_a_text_tower_of_others():
    with torch.device("meta"):
        assert len(list(blocks(OpenCLIPTextEncoder("ViT-B-32")))) == 12


def test_what_is_not_asked_for_changes_nothing():
    one = task()
    before = {name: dict(vars(module)) for name, module in one.named_modules()}
    Execution().apply(one.model)
    assert {name: dict(vars(module)) for name, module in one.named_modules()} == before


class Saved:
    """Bytes that autograd keeps for the backward pass, each storage once, weights left out."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._kept: dict[int, int] = {}

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def count(self, one: CrossModalTask) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
            loss, _ = one(BATCH, uniform(1))
        assert loss.requires_grad  # and with it the graph is alive up to here
        return sum(self._kept.values())


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "none"])
def test_checkpointed_blocks_keep_less_and_compute_the_same(fusion):
    plain, lean = task(fusion, dropout=0.2), task(fusion, dropout=0.2)
    Execution(checkpoint_activations=True).apply(lean.model)
    assert_same(step(lean), step(plain), rtol=0, atol=0)  # dropout as well
    assert Saved(lean).count(lean) < 0.7 * Saved(plain).count(plain)


def test_a_checkpointed_network_can_be_copied():
    one = task()
    Execution(checkpoint_activations=True).apply(one.model)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for parameter in other.model.vision.parameters():
            parameter.zero_()
    found, expected = step(other)[0], step(task())[0]
    assert step(one)[0] == expected != found


def test_channels_last():
    plain, other = task(), task()
    Execution(channels_last=True).apply(other.model)
    conv = next(module for module in other.model.patch_encoder.backbone.modules() if isinstance(module, nn.Conv2d))
    seen = []
    conv.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    assert_same(step(other), step(plain))
    assert len(seen) == 2 and all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert not BATCH.image.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(value.is_contiguous() for value in other.export().values())


def test_compiled_parts_are_called_and_compute_the_same():
    plain, other = task(), task()
    compiler = Compiler()
    torch._dynamo.reset()
    Execution(compile="default").apply(other.model, backend=compiler)
    assert_same(step(other), step(plain))
    parts = len([*cnns(other.model), *blocks(other.model)])
    assert parts == 7 and compiler.graphs > 0
    assert compiler.runs >= parts * 2  # the adversary runs them again
    assert list(other.model.state_dict()) == list(plain.model.state_dict())  # no _orig_mod


@pytest.mark.slow
def test_torch_compile_for_real():
    plain, other = task(), task()
    torch._dynamo.reset()
    Execution(compile="default", checkpoint_activations=True, channels_last=True).apply(other.model)
    assert_same(step(other), step(plain))
    loss, _ = other.losses(BATCH, uniform(1))
    assert other.trunk_gradient(loss["itc"]) > 0  # the graph is differentiated, and once more
    sum(loss.values()).backward()


def test_a_fused_optimizer_takes_the_same_steps():
    found = []
    for fused in (True, False):
        one = task()
        one._optimizer = partial(torch.optim.AdamW, lr=1e-2, eps=1e-3, fused=fused)  # gradients of 0 stay 0
        optimizer = one.configure_optimizers()["optimizer"]
        assert optimizer.defaults["fused"] is fused
        for _ in range(2):
            optimizer.zero_grad()
            step(one)
            optimizer.step()
        found.append(one.export())
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5, msg=name)

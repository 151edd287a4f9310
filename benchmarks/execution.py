"""What a training step costs under each way to run the network: precision, memory layout, activations computed again, torch.compile.

    python benchmarks/execution.py [--model tiny] [--batch 64] [--words 16] [--rounds 5] [--threads 1] [--ways fp32 bf16-mixed ...]
    python benchmarks/execution.py --attention [--batch 16] [--rounds 5]

Prints one json object: of each way the processor time of a step (ITC + ITM: forward, backward, fused AdamW), its ratio to `fp32`, the
MiB that autograd keeps for the backward pass, and the first step's loss. --attention: the processor time, forward and backward, of
torch's fused attention and of the same written out, in fp32 and in bf16. Times are the least of `--rounds` turns in which all ways take a
step one after the other. Pictures and captions are drawn; the weights are those of an untrained model.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from keeping import add_out, keep  # beside this file
from torch.nn import functional as F

from crossvit.config import compose
from crossvit.data.batches import PairBatch
from crossvit.models.transformer import attend
from crossvit.stages.build import build_task

WAYS: dict[str, tuple[str, list[str]]] = {
    "fp32": ("32", []),
    "channels_last": ("32", ["channels_last=true"]),
    "checkpoint_activations": ("32", ["checkpoint_activations=true"]),
    "compile": ("32", ["compile=default"]),
    "bf16-mixed": ("bf16-mixed", []),
    "bf16-mixed, channels_last": ("bf16-mixed", ["channels_last=true"]),
    "bf16-true": ("bf16-true", []),
}


class Step:
    """One way on its own copy of the model, ready to take training steps on one batch."""

    def __init__(self, way: str, model: str, size: int, words: int) -> None:
        self.precision, overrides = WAYS[way]
        torch.manual_seed(0)
        cfg = compose(["stage=coco", f"model={model}", "objective=itc_itm", *overrides], "train")
        self.task = build_task(cfg).train()
        self.task.configure_model()
        self.batch = drawn(size, cfg.model.image_size, words, self.task.model.text_encoder.vocab_size)
        if self.precision == "bf16-true":
            self.task.bfloat16()
            self.batch = self.batch._replace(image=self.batch.image.bfloat16())
        self.optimizer = torch.optim.AdamW((p for p in self.task.parameters() if p.requires_grad), fused=True)

    def loss(self) -> torch.Tensor:
        mixed = torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16-mixed" else contextlib.nullcontext()
        with mixed:
            return self.task(self.batch, uniform)[0]

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def kept(self) -> int:
        """Bytes that autograd keeps from the forward to the backward pass, weights left out."""
        weights = {p.untyped_storage().data_ptr() for p in self.task.parameters()}
        found: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        loss.backward()
        self.optimizer.zero_grad()
        return sum(found.values())


def uniform(n: int, stream: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(stream), dtype=torch.float32)


def drawn(size: int, side: int, words: int, vocabulary: int) -> PairBatch:
    """Random pictures and captions, all different."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(size)
    image = torch.randn(size, 3, side, side, generator=generator)
    tokens = torch.randint(4, vocabulary, (size, words), generator=generator)
    return PairBatch(image, tokens, torch.ones(size, words, dtype=torch.bool), rows, rows, rows)


def least_times(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Processor seconds of each, in turns."""
    found = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            found[name] = min(found[name], time.process_time() - started)
    return found


def measure(model: str, size: int, words: int, rounds: int, names: list[str]) -> dict:
    """Figures of each way by name."""
    steps = {name: Step(name, model, size, words) for name in names}
    found = {
        name: {"loss": round(step.loss().item(), 4), "kept_mib": round(step.kept() / 2**20, 1)}
        for name, step in steps.items()
    }
    times = least_times(steps, rounds)
    for name, figures in found.items():
        figures["cpu_seconds"] = round(times[name], 4)
        if "fp32" in times:
            figures["time_over_fp32"] = round(times[name] / times["fp32"], 3)
    return found


def attention(size: int, rounds: int) -> dict:
    """Processor seconds of the fused kernel and of explicit attention: 6 heads of 64 over 50 visual tokens, and over 32 words with
    padding."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        for name, length, masked in (("50 patches", 50, False), ("32 words, masked", 32, True)):
            inputs = [torch.randn(size, 6, length, 64, dtype=kind, requires_grad=True) for _ in range(3)]
            allowed = (torch.arange(length) < length - 5)[None, None, None] if masked else None
            ways = {
                "fused": lambda i=inputs, a=allowed: F.scaled_dot_product_attention(*i, attn_mask=a).sum().backward(),
                "explicit": lambda i=inputs, a=allowed: attend(*i, a, need_weights=True)[0].sum().backward(),
            }
            times = least_times(ways, rounds)
            found[f"{str(kind).removeprefix('torch.')}, {name}"] = {
                **{way: round(seconds, 5) for way, seconds in times.items()},
                "fused_over_explicit": round(times["fused"] / times["explicit"], 2),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=[name for name in WAYS if name != "compile"])
    parser.add_argument("--attention", action="store_true")
    add_out(parser)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.attention:
        found = {"attention": attention(asked.batch, asked.rounds)}
    else:
        found = {"ways": measure(asked.model, asked.batch, asked.words, asked.rounds, asked.ways)}
    keep(found, asked.out)


if __name__ == "__main__":
    main()

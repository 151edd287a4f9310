"""How cost grows: with the batch, the words, the depth and the number of processes; measured here, counted, and modelled up to 1,024 GPUs.

    python benchmarks/scaling.py [--ranks 1 2 3] [--models r18_small r18_base] [--local-batch 256] [--out FILE]

`measured`: FLOPs, processor seconds and the bytes that autograd keeps, of a step (forward and backward) of a small model for growing batch,
words and depth, with the exponent between the first and the last value.

`checked`: processes on this machine (gloo) take one step under DDP and under FSDP2, objectives itc, itc in tiles, and itc with itm. The
bytes that each collective carries are counted where torch.distributed is called, and what each process holds of weights, gradients and
Adam's state is added up; beside both stands the formula (`Formula`), which has to give the same. Then the processor seconds that a step
takes each process under DDP (contrastive and matching terms, AdamW), and the same processes while each trains alone, before and after, as
many side by side: the least of --times each.

`modelled`: the same formula for larger models and more GPUs, every device with --local-batch pairs of 32 words, with these assumptions:
compute takes its counted FLOPs at 40 % of 790 TFLOP/s; rings send 2 (W-1)/W of an all-reduce, (W-1)/W of a whole gathered or scattered
tensor, and as much of rows fetched from all alike; 450 GB/s between the 8 GPUs of a node, 50 GB/s for each GPU between nodes, a ring being
as fast as its slowest link; gradients and shards travel beside the backward pass and cost what exceeds it (two thirds of the compute),
features do not; activations grow with the local batch alone and are counted under bf16 autocast with attention written out, so they are an
upper bound on a GPU.

Prints one json object. One thread each.
"""

import argparse
import json
import math
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from keeping import add_out, keep  # beside this file
from torch import Tensor, nn

from crossvit.callbacks.compute import flop_counter
from crossvit.config import compose
from crossvit.data.batches import PairBatch
from crossvit.distributed import rank, world_size
from crossvit.models.execution import blocks
from crossvit.stages.build import build_task

OBJECTIVES = {
    "itc": ["objective=itc"],
    "itc_tiled": ["objective=itc", "objective.itc.tile=4"],
    "itc_itm": ["objective=itc_itm"],
}
STRATEGIES = ("ddp", "fsdp")
RATE = 0.4 * 790e12  # FLOP/s of a device
WITHIN, BETWEEN, NODE = 450e9, 50e9, 8  # bytes/s of a link, and GPUs of a node
WORLDS = (1, 8, 64, 256, 1024)


class Unit(NamedTuple):
    """What FSDP gathers at a time: a block, or all that is in none; shapes of its parameters."""

    is_block: bool
    trained: list[tuple[int, ...]]
    frozen: list[tuple[int, ...]]


class Sizes(NamedTuple):
    """Of one model and its step. units: those that run; scalars: trained parameters without a dimension; visual and text: (tokens, width)
    of what the fusion reads of a pair."""

    units: list[Unit]
    scalars: int
    embed: int
    visual: tuple[int, int]
    text: tuple[int, int]

    @property
    def parameters(self) -> int:
        return self.scalars + sum(math.prod(shape) for unit in self.units for shape in unit.trained)


class Formula(NamedTuple):
    """What one device of `world` holds and sends for a step of `local` pairs. All in bytes; weights and features in fp32."""

    sizes: Sizes
    world: int
    local: int
    objective: str
    strategy: str
    tile: int = 256

    def features(self) -> dict[str, int]:
        """What the objective's collectives carry: tensors that are gathered (whole), tensors that are summed over devices, and rows that
        devices fetch from each other (of one device; the mean over all, for which rows they are is drawn)."""
        if self.world == 1:
            return {}
        total, s = self.world * self.local, self.sizes
        ids = total * (8 + 8 + 1)  # image_id, text_id, and which pairs are true
        embeddings, means = 4 * total * s.embed, 4  # means: the pairs that a mean is over
        if self.objective == "itc_tiled":  # texts, and the log-sums of their columns from each device
            columns = 4 * self.world * total
            return {"gathered": ids + embeddings + columns, "summed": embeddings + columns}
        found = {"gathered": ids + 2 * embeddings, "summed": 2 * embeddings + 2 * means}
        if self.objective == "itc_itm":
            tokens = 4 * self.local * (math.prod(s.visual) + math.prod(s.text))
            pooled, mask = 4 * self.local * s.text[1], self.local * s.text[0]  # nobody asks for the gradient of pooled
            places = 2 * 8 * (self.world + self.local)  # how many rows from each device, and which: captions, pictures
            found["exchanged"] = 2 * tokens + pooled + mask + places
            found["summed"] += 8 + means  # the longest text
        return found

    def weights(self) -> dict[str, int]:
        """What the strategy's collectives carry."""
        if self.strategy == "ddp":
            return {} if self.world == 1 else {"summed": 4 * self.sizes.parameters}
        summed = {"summed": 4 * self.sizes.scalars}
        if self.world == 1:
            return summed
        units = self.sizes.units
        gathered = sum((2 if unit.is_block else 1) * self._padded(unit.trained + unit.frozen) for unit in units)
        scattered = sum(self._padded(unit.trained) for unit in units)
        return summed | {"gathered": 4 * gathered, "scattered": 4 * scattered}

    def held(self) -> dict[str, int]:
        """Weights, gradients and the two moments of Adam."""
        if self.strategy == "ddp":
            count = self.sizes.parameters
        else:
            count = self.sizes.scalars + sum(
                math.ceil(shape[0] / self.world) * math.prod(shape[1:])
                for unit in self.sizes.units
                for shape in unit.trained
            )
        return {"weights": 4 * count, "gradients": 4 * count, "optimizer": 8 * count}

    def transient(self) -> int:
        """What a step holds beside that and its activations: gathered features and their gradients, logits, DDP's buckets, or the two
        largest gathered units."""
        total, s = self.world * self.local, self.sizes
        logits = 5 * min(self.tile, total) if self.objective == "itc_tiled" else 4 * total
        found = 4 * self.local * logits
        if self.world > 1:
            found += 2 * self.features()["gathered"] + self.features().get("exchanged", 0)
        if self.strategy == "ddp":
            return found + (4 * s.parameters if self.world > 1 else 0)
        units = sorted((sum(map(math.prod, unit.trained + unit.frozen)) for unit in s.units), reverse=True)
        return found + 4 * sum(units[:2])

    def sent(self) -> dict[str, float]:
        """By this device over its link, in rings."""
        share = (self.world - 1) / self.world
        times = {"gathered": share, "scattered": share, "summed": 2 * share, "exchanged": share}
        return {
            name: sum(times[kind] * size for kind, size in part.items())
            for name, part in (("features", self.features()), ("weights", self.weights()))
        }

    def _padded(self, shapes: list[tuple[int, ...]]) -> int:
        return sum(self.world * math.ceil(shape[0] / self.world) * math.prod(shape[1:]) for shape in shapes)


def task_of(model: str, *overrides: str):
    """A task with weights of its own."""
    torch.manual_seed(0)
    cfg = compose(["stage=coco", f"model={model}", *overrides], "train")
    return build_task(cfg).train(), cfg


def sizes_of(task, cfg, words: int) -> Sizes:
    """What the formula needs to know of a model."""
    network, seen, units = task.network, set(), []
    for part in [*blocks(network), network]:
        own = [p for p in part.parameters() if p not in seen]
        seen.update(own)
        trained, frozen = (
            [tuple(p.shape) for p in own if p.dim() and p.requires_grad is kind] for kind in (True, False)
        )
        if trained or part is network:  # a block that is not trained is of no term's use, and does not run
            units.append(Unit(part is not network, trained, frozen))
    scalars = sum(not p.dim() and p.requires_grad for p in network.parameters())
    grid = math.prod(cfg.model.grid) + 1
    return Sizes(units, scalars, cfg.model.embed_dim, (grid, cfg.model.width), (words, cfg.model.text_width))


def drawn(size: int, side: int, words: int, vocabulary: int) -> PairBatch:
    """Random pictures and captions, all different."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(size)
    image = torch.randn(size, 3, side, side, generator=generator)
    tokens = torch.randint(4, vocabulary, (size, words), generator=generator)
    return PairBatch(image, tokens, torch.ones(size, words, dtype=torch.bool), rows, rows, rows, torch.ones_like(rows))


def uniform(n: int, stream: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(stream))


def step_cost(task, batch: PairBatch, precision: torch.dtype | None = None, times: int = 0) -> dict[str, float]:
    """FLOPs, bytes kept for the backward pass (weights left out), and the least processor seconds of `times` steps."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in task.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def loss() -> Tensor:
        with torch.autocast("cpu", precision) if precision else nullcontext():
            return task(batch, uniform)[0]

    with flop_counter() as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss().backward()
    seconds = []
    for _ in range(times):
        started = time.process_time()
        loss().backward()
        seconds.append(time.process_time() - started)
    found = {"flops": counter.get_total_flops(), "kept_bytes": sum(kept.values())}
    return found | ({"cpu_seconds": round(min(seconds), 4)} if seconds else {})


def growth(model: str, times: int, batch: int = 16, words: int = 16) -> dict[str, dict]:
    """Cost of a step while one thing grows, and the exponent of each figure from the first to the last value."""
    tables = {
        "batch": [(n, n, words, ()) for n in (batch, 2 * batch, 4 * batch)],
        "words": [(m, batch, m, ()) for m in (words, 2 * words, 4 * words)],
        "depth": [
            (d, batch, words, [f"model.{part}_depth={d}" for part in ("vision", "text", "fusion")]) for d in (2, 4, 8)
        ],
    }
    found = {}
    for name, rows in tables.items():
        table = []
        for value, size, length, overrides in rows:
            task, cfg = task_of(model, "objective=itc_itm", "tokenizer.context_length=64", *overrides)
            given = drawn(size, cfg.model.image_size, length, task.model.text_encoder.vocab_size)
            table.append({name: value, **step_cost(task, given, times=times)})
        first, last = table[0], table[-1]
        found[name] = {
            "rows": table,
            "exponent": {
                key: round(math.log(last[key] / first[key]) / math.log(last[name] / first[name]), 3)
                for key in first
                if key != name
            },
        }
    return found


COLLECTIVES = {  # of torch.distributed: what kind each is, and which argument holds the whole tensor; FSDP's own have had two names
    "all_gather": ("gathered", 0),
    "all_gather_into_tensor": ("gathered", 0),
    "all_gather_single": ("gathered", 0),
    "all_reduce": ("summed", 0),
    "all_to_all_single": ("exchanged", 0),
    "reduce_scatter_tensor": ("scattered", 1),
    "reduce_scatter_single": ("scattered", 1),
}


@contextmanager
def counted() -> Iterator[Counter]:
    """Bytes that collectives of torch.distributed carry, by kind: of a gather or a scatter the whole tensor, of a sum what is summed, of an
    exchange what arrives here."""
    found: Counter = Counter()
    plain = {name: getattr(dist, name) for name in COLLECTIVES if hasattr(dist, name)}

    def counting(name: str):
        kind, place = COLLECTIVES[name]

        def collective(*args, **kwargs):
            whole = [*args, *kwargs.values()][place]
            tensors = whole if isinstance(whole, list) else [whole]
            found[kind] += sum(x.numel() * x.element_size() for x in tensors)
            return plain[name](*args, **kwargs)

        return collective

    for name in plain:
        setattr(dist, name, counting(name))
    try:
        yield found
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)


class Whole(nn.Module):
    """A task whose forward is the loss of a batch, which is what DDP wraps."""

    def __init__(self, task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: PairBatch) -> Tensor:
        return self.task(batch, uniform)[0]


def one_step(model: str, objective: str, strategy: str, local: int, words: int) -> dict:
    """This process's figures of a step."""
    world = dist.get_world_size()
    task, cfg = task_of(model, *OBJECTIVES[objective])
    sizes = sizes_of(task, cfg, words)
    given = drawn(world * local, cfg.model.image_size, words, task.model.text_encoder.vocab_size)
    own = share(given)
    step = ddp(task) if strategy == "ddp" else fsdp(task)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(whole_or_sharded(task, trained, strategy), lr=1e-3, foreach=False)
    with counted() as counts:
        step(own).backward()
    if strategy == "fsdp":
        task.on_after_backward()
    optimizer.step()
    held = {
        "weights": sum(map(local_bytes, trained)),
        "gradients": sum(local_bytes(p.grad) for group in optimizer.param_groups for p in group["params"]),
        "optimizer": sum(
            local_bytes(x) for s in optimizer.state.values() for key, x in s.items() if key in ("exp_avg", "exp_avg_sq")
        ),
    }
    formula = Formula(sizes, world, local, objective, strategy, tile=4)
    expected: Counter = Counter()
    for part in (formula.features(), formula.weights()):
        expected.update(part)
    return {
        "carried": dict(counts),
        "carried_formula": dict(expected),
        "held": held,
        "held_formula": formula.held(),
    }


def timed(model: str, local: int, words: int, times: int) -> float:
    """This process's processor seconds of a step, contrastive and matching terms, under DDP where there is a process group; the least of
    `times`."""
    task, cfg = task_of(model, "objective=itc_itm")
    given = drawn(world_size() * local, cfg.model.image_size, words, task.model.text_encoder.vocab_size)
    step, own = ddp(task), share(given)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], fused=True)
    seconds = []
    for _ in range(times):
        if dist.is_initialized():
            dist.barrier()
        started = time.process_time()
        step(own).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return round(min(seconds), 4)


def share(batch: PairBatch) -> PairBatch:
    """This process's rows."""
    rows = slice(rank(), None, world_size())
    return PairBatch(*(x[rows] if isinstance(x, Tensor) else x for x in batch))


def ddp(task) -> nn.Module:
    """The task under DistributedDataParallel, which sums its gradients in Python, where it can be counted."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if world_size() == 1:
        return Whole(task)
    found = nn.parallel.DistributedDataParallel(Whole(task), broadcast_buffers=False)
    found.register_comm_hook(None, allreduce_hook)
    return found


def fsdp(task):
    """The task sharded as trainer.strategy=fsdp_spawn shards it, and its loss."""
    from torch.distributed.device_mesh import init_device_mesh

    from crossvit.sharding import shard

    def loss(batch: PairBatch) -> Tensor:
        return task(batch, uniform)[0]

    shard(task, init_device_mesh("cpu", (dist.get_world_size(),)), ())
    return loss


def whole_or_sharded(task, trained: list, strategy: str) -> list:
    """What the optimiser is given."""
    if strategy == "ddp":
        return trained
    from torch.distributed.device_mesh import init_device_mesh

    from crossvit.sharding import for_optimizer

    return for_optimizer([{"params": trained}], init_device_mesh("cpu", (dist.get_world_size(),)))


def local_bytes(tensor: Tensor) -> int:
    """Of what this process holds of it."""
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.numel() * own.element_size()


def one_rank(own: int, world: int, place: str, given: dict) -> list[dict]:
    """All checks, in this process."""
    torch.set_num_threads(1)
    if sys.platform == "linux" and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

    def seconds() -> list[float]:
        return [timed(model, local, given["words"], given["times"]) for model, local in given["timed"]]

    before = seconds()
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=own, world_size=world)
    found = []
    for strategy in STRATEGIES:
        for objective in OBJECTIVES:
            row = one_step(given["model"], objective, strategy, given["local"], given["words"])
            found.append({"ranks": world, "strategy": strategy, "objective": objective, **row})
    together = seconds()
    dist.barrier()
    dist.destroy_process_group()
    for (model, local), step, *alone in zip(given["timed"], together, before, seconds(), strict=True):
        figures = {"cpu_seconds_a_step": step, "alone": min(alone), "over_alone": round(step / min(alone), 3)}
        found.append({"ranks": world, "model": model, "local_batch": local, **figures})
    return found


TIMED = (("tiny", 96), ("r18_small", 8))  # model, and pairs of each process


def checked(ranks: list[int], model: str, local: int, words: int, times: int, timed=TIMED) -> list[dict]:
    """The rows of each number of processes; then those of a step's time. Rank 0's, and of what devices fetch from each other the mean."""
    rows = []
    for world in ranks:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"model": model, "local": local, "words": words, "times": times}
            settings = json.dumps(settings | {"timed": timed if world < 3 else timed[:1]})  # three share two cores here
            command = [sys.executable, __file__, "--one"]
            running = [
                subprocess.Popen(
                    [*command, str(own), str(world), str(Path(folder, "meet")), settings],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                for own in range(world)
            ]
            answers = [process.communicate() for process in running]
            if any(process.returncode for process in running):
                raise RuntimeError("\n".join(err.decode()[-2000:] for _, err in answers))
            first, *others = (json.loads(out.splitlines()[-1]) for out, _ in answers)
            for i, row in enumerate(first):
                if "exchanged" in row.get("carried", ()):
                    row["carried"]["exchanged"] = (
                        sum(answer[i]["carried"]["exchanged"] for answer in (first, *others)) / world
                    )
            rows += first
    return rows


def modelled(model: str, local: int, words: int = 32) -> dict:
    """The formula for many devices."""
    found = {"local_batch": local, "rows": []}
    for objective in OBJECTIVES:
        task, cfg = task_of(model, *OBJECTIVES[objective])
        sizes, costs = sizes_of(task, cfg, words), []
        for size in (2, 4):
            batch = drawn(size, cfg.model.image_size, words, task.model.text_encoder.vocab_size)
            costs.append(step_cost(task, batch, torch.bfloat16))
            task.zero_grad()
        flops, kept = ((costs[1][key] - costs[0][key]) / 2 for key in ("flops", "kept_bytes"))
        found[objective] = {
            "parameters": sizes.parameters,
            "gflops_of_a_pair": round(flops / 1e9, 2),
            "activations_mib_of_a_pair": round(kept / 2**20, 1),
        }
        for world in WORLDS:
            for strategy in STRATEGIES:
                formula = Formula(sizes, world, local, objective, strategy)
                found["rows"].append(row_of(formula, local * flops / RATE, local * kept))
    return found


def row_of(formula: Formula, compute: float, activations: float) -> dict:
    """compute: seconds of a step."""
    sent, held = formula.sent(), sum(formula.held().values())
    link = WITHIN if formula.world <= NODE else BETWEEN
    exposed = sent["features"] / link + max(0.0, sent["weights"] / link - 2 / 3 * compute)
    return {
        "devices": formula.world,
        "global_batch": formula.world * formula.local,
        "objective": formula.objective,
        "strategy": formula.strategy,
        "memory_gib": round((held + formula.transient() + activations) / 2**30, 2),
        "held_gib": round(held / 2**30, 2),
        "sent_features_mib": round(sent["features"] / 2**20, 1),
        "sent_weights_mib": round(sent["weights"] / 2**20, 1),
        "efficiency": round(compute / (compute + exposed), 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        own, world, place, settings = sys.argv[2:]
        print(json.dumps(one_rank(int(own), int(world), place, json.loads(settings))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--models", nargs="*", default=["r18_small", "r18_base"])
    parser.add_argument("--local-batch", type=int, default=256)
    parser.add_argument("--times", type=int, default=3)
    add_out(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "measured": growth("tiny", given.times),
        "checked": checked(given.ranks, "tiny", 16, 16, given.times),
        "modelled": {model: modelled(model, given.local_batch) for model in given.models},
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    keep(report, given.out)


if __name__ == "__main__":
    main()

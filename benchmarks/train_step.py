"""A training step of the same towers in this project, in a loop by hand, and in open_clip's own training code.

    python benchmarks/train_step.py [--batch 32] [--steps 2] [--rounds 3] [--side 128] [--words 32] [--precision bf16] [--out FILE]
    python benchmarks/train_step.py --overhead [--steps 500] [--rounds 5] [--out FILE]

Towers: ResNet-18 pooled and projected, and a causal text Transformer of 6 x 256 with CLIP's vocabulary, contrastive loss, AdamW without
clipping, autocast. Pictures and captions are drawn once, in memory; a caption has up to --words tokens, which open_clip's tokenizer pads to
77 and this project's cuts to the batch's longest.

    crossvit        CrossModalTask under lightning.Trainer, channels_last, fused AdamW, csv log
    crossvit_77     the same with texts of 77 tokens
    crossvit_plain  the same with texts of 77 tokens, without channels_last
    raw             the steps of `crossvit` in a loop by hand over the same task
    open_clip       open_clip_train.train.train_one_epoch with open_clip's model, loss and AdamW as its main sets them up

The ways take turns, each --steps steps behind two that are not counted (a new optimiser makes its state in them). Prints one json object:
processor seconds of a step (median of the turns), samples a second, the ratio to open_clip (median and range over the rounds), what a step
consists of, FLOPs of a step, and the peak resident memory of a process of its own. One thread.

--overhead: a step of a Task of one linear layer that logs 12 figures, under lightning.Trainer with the default callbacks and by hand.
"""

import argparse
import contextlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from keeping import add_out, keep  # beside this file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

WAYS = ("crossvit", "crossvit_77", "crossvit_plain", "raw", "open_clip")
CONTEXT = 77
WARM_UP = 2  # steps at the beginning of a turn
PRECISIONS = {"bf16": ("bf16-mixed", "amp_bf16"), "fp32": ("32", "fp32")}
OPEN_CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 128},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
CROSSVIT = [
    "stage=coco",
    "objective=itc",
    "patch_encoder=resnet18",
    "vision.depth=0",
    "text_encoder=clip_bpe",
    "fusion=none",
    "model.width=512",
    "model.heads=8",
    "model.grid=[4,4]",
    "model.text_width=256",
    "model.text_depth=6",
    "model.text_heads=4",
    "model.embed_dim=256",
    "trainer=cpu",
    "trainer.gradient_clip_val=null",
    "trainer.max_epochs=1",
    "callbacks=quiet",
    "callbacks.checkpoint=null",
    "callbacks.compute=null",
    "logger=csv",
]
PARTS = ("data", "forward", "backward", "optimizer", "rest")


class Watch:
    """Processor time of a training loop, from outside: it hands out the batches, and sees `Tensor.backward` and the optimiser.

    `with watch: loop(watch)`; iterated over, it gives the batches. What lies behind the optimiser and before the next batch (logging, the
    loop itself) is `rest`; `data` is empty but for the hand-over, for the batches are in memory.
    """

    def __init__(self, batches: list) -> None:
        self.batches = batches
        self.marks: list[tuple[str, float]] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        for batch in self.batches:
            self.mark("request")
            self.mark("batch")
            yield batch
        self.mark("request")

    def mark(self, name: str) -> None:
        self.marks.append((name, time.process_time()))

    def __enter__(self) -> "Watch":
        self.backward = torch.Tensor.backward

        def backward(tensor, *args, **kwargs) -> None:
            self.mark("backward")
            self.backward(tensor, *args, **kwargs)
            self.mark("optimizer")

        torch.Tensor.backward = backward
        self.hook = register_optimizer_step_post_hook(lambda *_: self.mark("rest"))
        return self

    def __exit__(self, *error) -> None:
        torch.Tensor.backward = self.backward
        self.hook.remove()

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each part in each step but the first two."""
        found: list[dict[str, float]] = []
        for (name, started), (_, ended) in zip(self.marks, self.marks[1:], strict=False):
            if name == "request":
                found.append(dict.fromkeys(PARTS, 0.0))
            part = {"request": "data", "batch": "forward"}.get(name, name)
            found[-1][part] += ended - started
        return found[WARM_UP:]


class Crossvit:
    """This project's task, as a config builds it; under a Trainer, or in a loop by hand."""

    def __init__(self, given, tokens: int, channels_last: bool, by_hand: bool = False) -> None:
        from crossvit.config import compose
        from crossvit.stages.build import build_task

        torch.manual_seed(0)
        kind = PRECISIONS[given.precision][0]
        own = [f"model.image_size={given.side}", f"trainer.precision={kind}", f"channels_last={channels_last}"]
        self.cfg = compose([*CROSSVIT, *own], "train")
        self.task = build_task(self.cfg).train()
        self.by_hand = by_hand
        self.autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=given.precision == "bf16")
        self.batches = [self.batch(*pair, tokens) for pair in drawn(given)]
        self.optimizer = None

    @staticmethod
    def batch(images, tokens, length: int):
        from crossvit.data.batches import PairBatch

        real = tokens != 0
        length = max(length, int(real.sum(1).max()))
        rows = torch.arange(len(images))
        return PairBatch(images, tokens[:, :length], real[:, :length], rows, rows, rows)

    def run(self, watch: Watch) -> None:
        if self.by_hand:
            self.loop(watch)
            return
        from crossvit.stages.training import build_trainer

        with tempfile.TemporaryDirectory() as folder, quiet():
            self.cfg = self.cfg.copy()
            self.cfg.paths.root = folder
            build_trainer(self.cfg, Path(folder)).fit(self.task, train_dataloaders=watch)

    def loop(self, watch: Watch) -> None:
        if self.optimizer is None:
            self.task.configure_model()
            self.optimizer = self.task.configure_optimizers()["optimizer"]
        for number, batch in enumerate(watch):
            self.optimizer.zero_grad()
            with self.autocast():
                loss = self.task.training_step(batch, number)
            loss.backward()
            self.optimizer.step()
            self.task.model.logit_scale.data.clamp_(0, math.log(100))

    def loss(self) -> torch.Tensor:
        with self.autocast():
            return self.task(self.batches[0])[0]


class OpenClip:
    """open_clip's model, loss, optimiser and epoch; what its main does in between is written out here."""

    def __init__(self, given) -> None:
        import open_clip
        from open_clip_train.precision import get_autocast

        kind = PRECISIONS[given.precision][1]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "crossvit-benchmark.json"
            vision = OPEN_CLIP["vision_cfg"] | {"image_size": given.side}
            path.write_text(json.dumps(OPEN_CLIP | {"vision_cfg": vision}))
            open_clip.add_model_config(path)
        self.model = open_clip.create_model("crossvit-benchmark", precision=kind, output_dict=True)
        self.args = SimpleNamespace(
            device="cpu",
            precision=kind,
            distill=False,
            accum_freq=1,
            skip_scheduler=False,
            horovod=False,
            grad_clip_norm=None,
            rank=0,
            local_rank=0,
            world_size=1,
            log_local=False,
            log_every_n_steps=100,
            wandb=False,
            batch_size=given.batch,
            model="crossvit-benchmark",
            siglip=False,
            local_loss=False,
            gather_with_grad=False,
        )
        self.criterion = open_clip.create_loss(self.args)
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        alone = [
            p
            for name, p in named
            if p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
        ]
        rest = [p for name, p in named if not any(p is other for other in alone)]
        groups = [{"params": alone, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
        self.autocast = get_autocast(kind, device_type="cpu")
        self.batches = [(images, tokens) for images, tokens in drawn(given)]

    def run(self, watch: Watch) -> None:
        from open_clip_train.train import train_one_epoch

        loader = SimpleNamespace(num_batches=len(watch), num_samples=len(watch) * self.args.batch_size)
        loader = type("Loader", (), vars(loader) | {"__iter__": lambda _: iter(watch)})()
        data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
        train_one_epoch(
            self.model, data, self.criterion, 0, self.optimizer, None, lambda step: None, None, self.args, None
        )

    def loss(self) -> torch.Tensor:
        self.model.train()
        with self.autocast():
            return sum(self.criterion(**self.model(*self.batches[0]), output_dict=True).values())


MAKE: dict[str, Callable] = {
    "crossvit": lambda given: Crossvit(given, 0, True),
    "crossvit_77": lambda given: Crossvit(given, CONTEXT, True),
    "crossvit_plain": lambda given: Crossvit(given, CONTEXT, False),
    "raw": lambda given: Crossvit(given, 0, True, by_hand=True),
    "open_clip": OpenClip,
}


def drawn(given) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of a turn: pictures, and tokens that end in the highest number, CLIP's end of text, and are padded with zeros to 77."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(given.steps + WARM_UP):
        images = torch.randn(given.batch, 3, given.side, given.side, generator=generator)
        tokens = torch.zeros(given.batch, CONTEXT, dtype=torch.long)
        lengths = torch.randint(min(8, given.words), given.words + 1, (given.batch,), generator=generator)
        lengths[0] = given.words
        for row, length in zip(tokens, lengths.tolist(), strict=True):
            row[:length] = torch.randint(1, 49405, (length,), generator=generator)
            row[0], row[length - 1] = 49406, 49407
        found.append((images, tokens))
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's lines on what it uses and misses."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def turn(way) -> list[dict[str, float]]:
    """The steps of one turn."""
    with Watch(way.batches) as watch:
        way.run(watch)
    return watch.steps()


def measure(given, names: list[str]) -> dict[str, dict]:
    """Figures of each way by name."""
    from crossvit.callbacks.compute import flop_counter

    ways = {name: MAKE[name](given) for name in names}
    found: dict[str, dict] = {}
    for name, way in ways.items():
        turn(way)  # warms up; the optimiser makes its state
        with flop_counter() as counter:
            way.loss().backward()
        found[name] = {"gflops_of_a_step": round(counter.get_total_flops() / 1e9, 1)}
    rounds = {name: [] for name in names}
    for _ in range(given.rounds):
        for name, way in ways.items():
            rounds[name].append(turn(way))
    seconds = {
        name: [statistics.mean(sum(s.values()) for s in steps) for steps in turns] for name, turns in rounds.items()
    }
    for name in names:
        median = statistics.median(seconds[name])
        found[name] |= {
            "cpu_seconds_a_step": round(median, 5),
            "samples_per_cpu_second": round(given.batch / median, 2),
            "split": {
                part: round(statistics.median(s[part] for steps in rounds[name] for s in steps), 5) for part in PARTS
            },
        }
        for base in ("open_clip", "raw"):
            if base in seconds and base != name:
                found[name][f"speed_over_{base}"] = spread(
                    [theirs / own for theirs, own in zip(seconds[base], seconds[name], strict=True)]
                )
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def peak(name: str, given) -> dict[str, float]:
    """MiB that a process of its own, which takes one turn, holds at most, and held before the first step."""
    settings = json.dumps(vars(given) | {"out": None})
    done = subprocess.run([sys.executable, __file__, "--one", name, settings], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def one(name: str, given) -> dict[str, float]:
    """`peak`, in that process."""
    torch.set_num_threads(1)
    way = MAKE[name](given)
    before = resident()
    turn(way)
    return {"peak_mib": resident(), "peak_mib_before_the_first_step": before}


def resident() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def overhead(steps: int, rounds: int) -> dict:
    """Microseconds of processor time a step, under the Trainer and by hand, in turns."""
    turns = {"trainer": little(12, steps), "by_hand": little(12, steps, by_hand=True)}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            found[name].append(turn() * 1e6)
    more = [a - b for a, b in zip(found["trainer"], found["by_hand"], strict=True)]
    return {
        "figures_logged": 12,
        **{f"{name}_us": spread(values) for name, values in found.items()},
        "overhead_us": spread(more),
        "bar_us": 600,
        "overhead_over_by_hand": spread([a / b for a, b in zip(more, found["by_hand"], strict=True)]),
        "bar_over_by_hand": 1.33,  # 600 us were asked for where the loop by hand took 450
    }


def little(figures: int, steps: int, by_hand: bool = False) -> Callable[[], float]:
    """A Task of one linear layer: what takes a turn with it and says how many seconds a step took."""
    from crossvit.config import compose
    from crossvit.stages.training import build_trainer
    from crossvit.tasks.base import Task

    class Little(Task):
        def __init__(self) -> None:
            super().__init__(partial(torch.optim.AdamW, lr=1e-3, fused=True), lambda step, total: 1.0)
            self.layer = nn.Linear(8, 1)

        def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
            loss = self.layer(batch).square().mean()
            self.step_losses = {"loss": loss.detach()}  # what callbacks/health.py looks at
            self.log_figures({f"figure_{k}": loss.detach() for k in range(figures)})
            return loss

    batches = [torch.randn(4, 8) for _ in range(steps + 1)]
    cfg = compose(["stage=imagenet", "trainer=cpu", "trainer.max_epochs=1", "callbacks=quiet", "logger=csv"], "train")

    def with_trainer() -> float:
        with tempfile.TemporaryDirectory() as folder, quiet():
            own = cfg.copy()
            own.paths.root = folder
            watch = Watch(batches)
            build_trainer(own, Path(folder)).fit(Little(), train_dataloaders=watch)
        return per_step(watch)

    def with_a_loop() -> float:
        task, watch = Little(), Watch(batches)
        made = task.configure_optimizers()
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        for number, batch in enumerate(watch):
            loss = task.training_step(batch, number)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return per_step(watch)

    return with_a_loop if by_hand else with_trainer


def per_step(watch: Watch, first: int = 10) -> float:
    """Seconds from request to request, the first steps left out: some callbacks look at those."""
    asked = [when for name, when in watch.marks if name == "request"]
    first = min(first, len(asked) - 2)
    return (asked[-1] - asked[first]) / (len(asked) - 1 - first)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(sys.argv[2], SimpleNamespace(**json.loads(sys.argv[3])))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 32), ("steps", None), ("rounds", None), ("side", 128), ("words", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--overhead", action="store_true")
    add_out(parser)
    given = parser.parse_args()
    given.steps = given.steps or (500 if given.overhead else 2)
    given.rounds = given.rounds or (5 if given.overhead else 3)
    torch.set_num_threads(1)
    if given.overhead:
        figures = overhead(given.steps, given.rounds)
    else:
        peaks = {
            name: peak(name, given) for name in given.ways
        }  # first: a process begins with the peak of the one that starts it
        figures = {name: found | peaks[name] for name, found in measure(given, given.ways).items()}
    report = {
        "figures": figures,
        **{name: getattr(given, name) for name in ("steps", "rounds")},
        **({} if given.overhead else {name: getattr(given, name) for name in ("batch", "side", "words", "precision")}),
        "threads": 1,
    }
    keep(report, given.out, ("torch", "lightning", "open_clip_torch", "timm"))


if __name__ == "__main__":
    main()

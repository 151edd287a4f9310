"""What each objective costs a training step, over contrastive learning with matching, and over contrastive learning alone.

    python benchmarks/objectives.py [--model tiny] [--batch 64] [--words 16] [--rounds 5] [--objectives itc pgd ...] [--out FILE]

Prints one json object: of each objective the FLOPs and the pair-passes of a step (forward and backward, everything that the objective adds
included), the processor time of a step (forward, backward, optimiser, teacher), and the ratios of both to `itc_itm` and to `itc`. All
objectives take a step one after the other, --rounds times: times are medians, their ratios medians over the rounds, with the range.
Pictures and captions are drawn, without generated negatives; weights are those of an untrained model.
"""

import argparse
import statistics
import time

import torch
from keeping import add_out, keep  # beside this file

from crossvit.callbacks.compute import flop_counter, pair_flops
from crossvit.config import compose
from crossvit.data.batches import PairBatch
from crossvit.stages.build import build_task

OBJECTIVES = {
    "itc": ["objective=itc"],
    "itc_itm": ["objective=itc_itm"],
    "sigmoid": ["objective=sigmoid"],
    "itc_itm_mlm": ["objective=itc_itm_mlm"],
    "dml": ["objective=dml"],
    "cyclip": ["objective=cyclip"],
    "crossdual": ["objective=crossdual"],
    "ema": ["objective=ema"],
    "pgd": ["objective=pgd"],
    "pgd_3": ["objective=pgd", "objective.adversarial.steps=3"],
    "random_delta": ["objective=pgd", "objective.adversarial.direction=random"],
    "freelb": ["objective=freelb"],
    "villa": ["objective=villa"],
    "vat": ["objective=vat"],
    "full": ["objective=full"],
}


class Step:
    """One objective on its own copy of the model, ready to take training steps on one batch."""

    def __init__(self, model: str, overrides: list[str], size: int, words: int) -> None:
        torch.manual_seed(0)
        self.cfg = compose(["stage=coco", f"model={model}", *overrides], "train")
        self.task = build_task(self.cfg).train()
        self.task.setup("fit")
        self.optimizer = torch.optim.AdamW(p for p in self.task.parameters() if p.requires_grad)
        self.batch = drawn(size, self.cfg.model.image_size, words, self.task.model.text_encoder.vocab_size)

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.task.teacher is not None:
            self.task.teacher.follow(self.task.model)

    def loss(self) -> torch.Tensor:
        return self.task(self.batch, uniform)[0]

    def flops(self) -> int:
        """Of forward and backward."""
        with flop_counter() as counter:
            self.loss().backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def uniform(n: int, stream: int = 0) -> torch.Tensor:
    """As in training: numbers of their own generator."""
    return torch.rand(n, generator=torch.Generator().manual_seed(stream))


def drawn(size: int, side: int, words: int, vocabulary: int) -> PairBatch:
    """Random pictures and captions, all different."""
    rows = torch.arange(size)
    return PairBatch(
        torch.randn(size, 3, side, side),
        torch.randint(4, vocabulary, (size, words)),
        torch.ones(size, words, dtype=torch.bool),
        rows,
        rows,
        rows,
    )


def measure(model: str, size: int, words: int, rounds: int, names: list[str]) -> dict:
    """Figures of each objective by name."""
    steps = {name: Step(model, OBJECTIVES[name], size, words) for name in names}
    found = {}
    for name, step in steps.items():
        flops = step.flops()
        found[name] = {
            "flops": flops,
            "pair_passes": round(flops / pair_flops(step.task.model, step.batch), 1),
        }
    turns: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()  # the optimiser makes its state
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            turns[name].append(time.process_time() - started)
    for name, figures in found.items():
        figures["cpu_seconds"] = round(statistics.median(turns[name]), 4)
        for base in ("itc", "itc_itm"):
            if base in found:
                ratios = [own / other for own, other in zip(turns[name], turns[base], strict=True)]
                figures[f"flops_over_{base}"] = round(figures["flops"] / found[base]["flops"], 3)
                figures[f"time_over_{base}"] = round(statistics.median(ratios), 3)
                figures[f"time_over_{base}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--words", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--objectives", nargs="*", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    add_out(parser)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    report = {
        "objectives": measure(asked.model, asked.batch, asked.words, asked.rounds, asked.objectives),
        **{name: getattr(asked, name) for name in ("model", "batch", "words", "rounds", "threads")},
    }
    keep(report, asked.out)


if __name__ == "__main__":
    main()

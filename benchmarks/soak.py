"""Whether anything grows in a process that trains for hours: the three stages of the scenes corpus and their test, again and again.

    python benchmarks/soak.py [--minutes 120] [--out soak.json] [--root DIR] [--overrides trainer.max_epochs=3 ...]

Every round is `crossvit pipeline experiment=smoke` with a seed of its own, in this one process; what it has trained is thrown away, so that
the disk does not grow. After each round, and each half minute, it reads resident memory, open file handles, threads and children. A
training step's time is processor time of the process, all its threads included, over the round's steps; behind each step a small network
takes a step of its own, the same each time, and the ratio of the two tells a step that grows from a machine that is busier.

Writes the samples, and of each figure a line fitted over the rounds behind the warm-up: slope an hour with its 95 % interval (least
squares; the standard error is widened for the correlation of neighbouring rounds), and whether the interval leaves out 0. Beside the json
lies the plot. On SIGTERM, Ctrl-C or a round that fails it writes what it has.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import lightning as L
import numpy as np
import torch

from crossvit import cli
from crossvit.metrics.student import t_quantile
from crossvit.report.atomic import write_atomically
from crossvit.stages import training
from crossvit.stages.provenance import environment

FIGURES = {
    "rss_mib": "resident memory (MiB)",
    "handles": "open file handles",
    "threads": "threads",
    "children": "child processes",
    "cpu_ms_per_step": "processor time of a training step (ms)",
    "step_over_reference": "training step over a fixed computation (times)",
}
WARM_UP = 0.1  # share of the time whose rounds are left out of the fit, and how many rounds at the least: what is loaded at first use is
WARM_UP_ROUNDS = 5  # loaded by then, and the memory that was asked for and given back in pieces has found its size


class Stop:
    """SIGTERM ends the round it comes in by KeyboardInterrupt. `asked` says so where a library has made another error of that."""

    asked = False

    def __call__(self, number: int, frame: object) -> None:
        self.asked = True
        raise KeyboardInterrupt


class Reference:
    """A computation that stays the same: forward and backward of two convolutions."""

    def __init__(self) -> None:
        self._network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, 2))
        self._input = torch.linspace(-1, 1, 16 * 3 * 32 * 32).view(16, 3, 32, 32)

    def __call__(self) -> None:
        with torch.enable_grad():
            self._network(self._input).square().mean().backward()
        self._network.zero_grad()


class StepClock(L.Callback):
    """Processor seconds and number of the training steps over all stages of a round, and seconds of as many references."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self.reference_seconds = 0.0
        self._begin = 0.0
        with torch.random.fork_rng([]):
            self._reference = Reference()

    def on_train_batch_start(self, *args) -> None:
        self._begin = time.process_time()

    def on_train_batch_end(self, *args) -> None:
        ended = time.process_time()
        self._reference()
        self.reference_seconds += time.process_time() - ended
        self.seconds += ended - self._begin
        self.steps += 1


def reading() -> dict[str, float]:
    """What this process holds at this moment."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    children = [Path(task, "children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    return {
        "rss_mib": round(int(fields["VmRSS"].split()[0]) / 1024, 2),
        "handles": len(os.listdir("/proc/self/fd")) - 1,  # but the one that lists them
        "threads": int(fields["Threads"]),
        "children": sum(map(len, children)),
    }


@contextmanager
def sampled(samples: list[dict], started: float, seconds: float) -> Iterator[None]:
    """A reading each so many seconds, beside what runs."""
    over = threading.Event()

    def read() -> None:
        while not over.wait(seconds):
            try:
                samples.append({"seconds": round(time.monotonic() - started, 1), **reading()})
            except FileNotFoundError:  # a thread that has just ended
                continue

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def clocked(clock: StepClock) -> Iterator[None]:
    """Every Trainer that a stage builds meanwhile carries the clock."""
    build = training.build_trainer

    def with_clock(*arguments):
        trainer = build(*arguments)
        trainer.callbacks.append(clock)
        return trainer

    training.build_trainer = with_clock
    try:
        yield
    finally:
        training.build_trainer = build


def one_round(seed: int, root: Path, overrides: list[str]) -> dict[str, float]:
    """The pipeline once. Raises RuntimeError where it fails."""
    shutil.rmtree(root / "runs", ignore_errors=True)  # what an earlier call was stopped in
    clock, began = StepClock(), time.process_time()
    arguments = ["pipeline", "experiment=smoke", "callbacks=quiet", f"seed={seed}", f"paths.root={root}", *overrides]
    with (root / "output.txt").open("w") as output, redirect_stdout(output), redirect_stderr(output), clocked(clock):
        code = cli.main(arguments)
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"round of seed {seed}: exit code {code}; see {root / 'output.txt'}")
    shutil.rmtree(root / "runs")
    gc.collect()
    return {
        "seed": seed,
        "steps": clock.steps,
        "cpu_seconds": round(time.process_time() - began, 3),
        "cpu_ms_per_step": round(1000 * clock.seconds / clock.steps, 3),
        "step_over_reference": round(clock.seconds / clock.reference_seconds, 4),
        **reading(),
    }


def slope(hours: np.ndarray, values: np.ndarray) -> dict:
    """Slope an hour of a line through the values, its 95 % interval, and whether that leaves out 0.

    The standard error of least squares is that of independent errors; it is multiplied by sqrt((1 + r) / (1 - r)), r >= 0 the correlation
    of neighbouring residuals, as of errors that follow one another in a chain. None for fewer than 5 rounds.
    """
    if len(values) < 5:
        return {"per_hour": None, "low": None, "high": None, "drifts": None}
    x = hours - hours.mean()
    per_hour = float(x @ (values - values[0]) / (x @ x))  # exactly 0 where nothing moves
    residuals = values - values[0] - (values - values[0]).mean() - per_hour * x
    spread = float(residuals @ residuals)
    r = float(residuals[1:] @ residuals[:-1]) / spread if spread > 0 else 0.0
    r = min(max(r, 0.0), 0.98)
    error = np.sqrt(spread / (len(values) - 2) / (x @ x) * (1 + r) / (1 - r))
    half = float(t_quantile(0.975, len(values) - 2) * error)
    low, high = per_hour - half, per_hour + half
    return {
        "per_hour": round(per_hour, 5),
        "low": round(low, 5),
        "high": round(high, 5),
        "mean": round(float(values.mean()), 3),
        "percent_per_hour": round(100 * per_hour / float(values.mean()), 3) if values.any() else 0.0,
        "rounds": len(values),
        "correlation": round(r, 3),
        "drifts": bool(low > 0 or high < 0),
    }


def behind_warm_up(rounds: list[dict], seconds: float) -> list[dict]:
    return [row for row in rounds[WARM_UP_ROUNDS:] if row["seconds"] >= WARM_UP * seconds]


def fits(kept: list[dict]) -> dict[str, dict]:
    """`slope` of every figure over these rounds."""
    hours = np.array([row["seconds"] for row in kept]) / 3600
    return {name: slope(hours, np.array([row[name] for row in kept], dtype=float)) for name in FIGURES}


def plot(record: dict, path: Path) -> None:
    """Every figure over the hours: points after each round, a grey line each half minute, the fitted slope in the title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rounds, samples = record["rounds"], record["samples"]
    figure, axes = plt.subplots(len(FIGURES), 1, figsize=(8, 2.1 * len(FIGURES)), sharex=True, layout="constrained")
    for axis, (name, label) in zip(axes, FIGURES.items(), strict=True):
        if samples and name in samples[0]:
            axis.plot([s["seconds"] / 3600 for s in samples], [s[name] for s in samples], color="0.8", linewidth=0.8)
        axis.plot([r["seconds"] / 3600 for r in rounds], [r[name] for r in rounds], ".", markersize=3)
        kept = behind_warm_up(rounds, 60 * record["asked"]["minutes"])
        axis.axvspan(0, rounds[len(rounds) - len(kept) - 1]["seconds"] / 3600 if kept else 0, color="0.95", zorder=0)
        fit = record["fits"][name]
        text = "too few rounds for a slope"
        if fit["per_hour"] is not None:
            text = f"{fit['per_hour']:+.3g} an hour (95 %: {fit['low']:+.3g} to {fit['high']:+.3g})"
        axis.set_title(f"{label}: {text}", fontsize=9, loc="left")
        if name in reading():
            axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("hours; grey: warm-up, not in the fit")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def soak(minutes: float, root: Path, overrides: list[str], every: float, write, stop: Stop) -> dict:
    """Rounds until the time is over or someone stops it; `write` is called with what there is after each round."""
    started = time.monotonic()
    record: dict = {"rounds": [], "samples": [], "ended": "running"}
    try:
        with sampled(record["samples"], started, every):
            while time.monotonic() - started < 60 * minutes:
                row = one_round(len(record["rounds"]), root, overrides)
                record["rounds"].append({"seconds": round(time.monotonic() - started, 1), **row})
                write(record)
        record["ended"] = "the time was over"
    except KeyboardInterrupt:
        record["ended"] = "stopped"
    except Exception as error:
        record["ended"] = "stopped" if stop.asked else f"failed: {error}"
    write(record)
    return record


def machine() -> str:
    """Processor, cores, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=30, help="seconds between two readings")
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    parser.add_argument("--root", type=Path, help="where the rounds work; a temporary folder otherwise")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the pipeline, e.g. trainer.max_epochs=3")
    parser.add_argument("--refit", type=Path, help="only fit and plot the samples of this json again")
    asked = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    given = {"minutes": asked.minutes, "every": asked.every, "overrides": asked.overrides}
    about = environment() | {"command": shlex.join(["python", "benchmarks/soak.py", *_public(sys.argv[1:])])}
    about |= {"machine": machine(), "threads": torch.get_num_threads(), "asked": given}

    def write(record: dict) -> None:
        seconds = 60 * (about | record)["asked"]["minutes"]
        record["fits"] = fits(behind_warm_up(record["rounds"], seconds))
        record["fits_with_warm_up"] = fits(record["rounds"])
        write_atomically(asked.out, f"{json.dumps(about | record, indent=1)}\n".encode())

    if asked.refit is not None:
        about = json.loads(asked.refit.read_text())
        write(about)
        plot(about, asked.out.with_suffix(".png"))
        print(json.dumps({name: about[name] for name in ("fits", "fits_with_warm_up")}, indent=1))
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        root = asked.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        record = soak(asked.minutes, root.resolve(), asked.overrides, asked.every, write, stop)
    plot(about | record, asked.out.with_suffix(".png"))
    print(json.dumps({"ended": record["ended"], "rounds": len(record["rounds"]), **record["fits"]}, indent=1))
    return 1 if record["ended"].startswith("failed") else 0


def _public(words: list[str]) -> list[str]:
    """The command line without places on this machine."""
    kept, skip = [], False
    for word in words:
        if word in ("--out", "--root"):
            skip = True
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    sys.exit(main())

"""How long a command takes before it works: help, a composed config, a debug run, and what a job of a sweep adds.

    python benchmarks/startup.py [--rounds 3] [--no-peers] [--out FILE]

Prints one json object: processor seconds (user and system) and seconds by the clock, of each the median and the least of the rounds, in
which all take turns.

    help, config    train --help and train --cfg job, and whether they load torch
    debug           train debug=fast in an empty folder: its corpus is made, and three stages take two steps each
    imports         of that: torch alone; lightning as this project imports it; and `import lightning` by itself
    sweep_per_job   (a sweep of three jobs - a sweep of one) / 2, none of which has anything to train any more: all in one process
    peers           open_clip_train.main --help, and its training of two steps on drawn data with ResNet-18 at 128 px and a text Transformer
                    of 6 x 256, as benchmarks/train_step.py has them
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from keeping import add_out, keep  # beside this file

CROSSVIT = [sys.executable, "-m", "crossvit"]


def timed(command: list[str], root: Path) -> dict[str, float]:
    """Processor and clock seconds of a command. Raises RuntimeError with its output where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CROSSVIT_ROOT": str(root)})
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": cpu, "seconds": time.perf_counter() - started}


def imports_torch(arguments: list[str]) -> bool:
    """Whether this command line loads torch before it answers."""
    text = "import sys; from crossvit.cli import main; main(%r); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text % (arguments,)], capture_output=True, text=True)
    return done.stdout.splitlines()[-1] == "True"


IMPORTS = {
    "torch": "import torch",
    "lightning_here": "import torch; from crossvit.quick_start import import_lightning; import_lightning()",
    "lightning": "import torch, lightning",
}
BARS = {"help": 0.6, "config": 0.6, "debug": 8.0}  # seconds by the clock
OPEN_CLIP = """
import json, pathlib, sys
import open_clip
from open_clip_train.main import main
vision = {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 128}
text = {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6}
path = pathlib.Path(sys.argv[1]) / "crossvit-benchmark.json"
path.write_text(json.dumps({"embed_dim": 256, "vision_cfg": vision, "text_cfg": text}))
open_clip.add_model_config(path)
main(["--dataset-type", "synthetic", "--train-num-samples", "128", "--batch-size", "64", "--epochs", "1", "--workers", "0",
      "--model", "crossvit-benchmark", "--precision", "fp32", "--logs", sys.argv[1]])
"""


def measure(rounds: int, root: Path, peers: bool = True) -> dict:
    """Figures by what was asked."""
    sweep = [*CROSSVIT, "train", "stage=imagenet", "experiment=smoke", "--multirun"]
    asked = {
        "help": [*CROSSVIT, "train", "--help"],
        "config": [*CROSSVIT, "train", "--cfg", "job"],
        "debug": [*CROSSVIT, "train", "debug=fast"],
        **{f"import_{name}": [sys.executable, "-c", text] for name, text in IMPORTS.items()},
        "sweep_of_1": [*sweep, "seed=0"],
        "sweep_of_3": [*sweep, "seed=0,1,2"],
    }
    if peers:
        asked["open_clip_help"] = [sys.executable, "-m", "open_clip_train.main", "--help"]
        asked["open_clip_two_steps"] = [sys.executable, "-c", OPEN_CLIP]
    timed(asked["sweep_of_3"], root / "sweep")  # trains them, once
    fresh = map(str, count())
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, command in asked.items():
            place = root / ("sweep" if name.startswith("sweep") else next(fresh))
            place.mkdir(parents=True, exist_ok=True)
            turns[name].append(timed([*command, str(place)] if name == "open_clip_two_steps" else command, place))
    return summary(turns)


def summary(turns: dict[str, list[dict[str, float]]]) -> dict:
    """Medians and least values; a sweep's jobs by their difference in each round; ratios to the peers in each round."""
    one, three = turns.pop("sweep_of_1"), turns.pop("sweep_of_3")
    turns["sweep_per_job"] = [{key: (b[key] - a[key]) / 2 for key in a} for a, b in zip(one, three, strict=True)]
    found: dict[str, dict] = {}
    for name, rows in turns.items():
        found[name] = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        found[name] |= {f"least_{key}": round(min(row[key] for row in rows), 3) for key in rows[0]}
    for name, peer in (("help", "open_clip_help"), ("debug", "open_clip_two_steps")):
        if peer in turns:
            ratios = [a["cpu_seconds"] / b["cpu_seconds"] for a, b in zip(turns[name], turns[peer], strict=True)]
            found[name]["cpu_over_open_clip"] = round(statistics.median(ratios), 3)
    for name, bar in BARS.items():
        found[name]["bar_seconds"] = bar
    for name in ("help", "config"):
        found[name]["imports_torch"] = imports_torch(["train", *(["--help"] if name == "help" else ["--cfg", "job"])])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    add_out(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.rounds, Path(folder), given.peers)
    report = {
        "figures": found,
        "rounds": given.rounds,
        "load_average": os.getloadavg()[0],  # processes that wanted the cores, which seconds by the clock depend on
        "cores": os.cpu_count(),
    }
    keep(report, given.out, ())


if __name__ == "__main__":
    main()

"""How long a command takes before it works: help, a composed config, a debug run, and what a job of a sweep adds.

    python benchmarks/startup.py [--rounds 3] [--root DIR]

Prints one json object: processor seconds (user and system) and seconds by the clock, the least of the rounds, taken in turn. The debug run
makes the embedded corpus first and trains two steps of each stage; a sweep's job is the difference between a sweep of three jobs and one of one,
none of which has anything to train any more.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
    text = "import sys, runpy\nsys.argv = ['crossvit', *%r]\ntry:\n    runpy.run_module('crossvit', run_name='__main__')\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text % (arguments,)], capture_output=True, text=True)
    return done.stdout.splitlines()[-1] == "True"


def measure(rounds: int, root: Path) -> dict:
    """Figures by what was asked."""
    sweep = ["train", "stage=imagenet", "experiment=smoke", "--multirun"]
    asked = {
        "help": ["train", "--help"],
        "config": ["train", "--cfg", "job"],
        "debug": ["train", "debug=fast"],
        "sweep_of_1": [*sweep, "seed=0"],
        "sweep_of_3": [*sweep, "seed=0,1,2"],
    }
    timed([*CROSSVIT, *asked["sweep_of_3"]], root)  # trains them, once
    found: dict[str, dict] = {}
    for _ in range(rounds):
        for name, arguments in asked.items():
            now = timed([*CROSSVIT, *arguments], root)
            best = found.setdefault(name, now)
            found[name] = {key: round(min(best[key], now[key]), 3) for key in now}
    for name in ("help", "config"):
        found[name]["imports_torch"] = imports_torch(asked[name])
    one, three = found.pop("sweep_of_1"), found.pop("sweep_of_3")
    found["sweep_per_job"] = {key: round((three[key] - one[key]) / 2, 3) for key in one}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="where runs and data go; default: a folder that is taken away again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.rounds, asked.root or Path(folder))
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps({"command": sys.argv[1:], **versions, "rounds": asked.rounds, "figures": found}, indent=1))


if __name__ == "__main__":
    main()

"""kill -9 at random moments, the same command again, and again: is the end that of a run which nobody has disturbed?

    python -m tests.kills [--kills 100] [--seed 0] [--runs imagenet coco vlr chain] [--out kills.jsonl] [--root DIR]

Each run is a command that trains on a handful of scenes with a checkpoint after every step. It is run undisturbed, then killed and
started again until its share of the kills is spent, then left to end. Moments are drawn by the seed: some time after a step that is drawn
as well (in a forward pass, while a checkpoint is written, in a validation), at the end of a stage's training, or after the start of the
process (while data are read, a checkpoint is looked through). Weights, figures, validation curve and metrics.csv are compared, bit for bit.

Writes one json line a kill (run, stage and step it came in, what the next process went on from), one line a run (equal or not, what
differs), and a first line that says what was run. Exit code 1 where a run has ended otherwise. `--table kills.jsonl` prints what a file
says.
"""

import argparse
import csv
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.commands import Done, environment
from tests.forked import forkserver

SMALL = ["experiment=smoke", "callbacks=quiet", "logger=csv", "trainer.log_every_n_steps=1", "data.batch_size=8"]
EVERY_STEP = ["callbacks.checkpoint.every_n_epochs=null", "callbacks.checkpoint.every_n_train_steps=1"]
PARTS = ["fusion.dropout=0.1", "vision.dropout=0.1"]  # random numbers that a checkpoint has to bring back
EVERYTHING = ["objective=full", "objective.itc.queue_size=24"]  # teacher, queue, adversary
RUNS = {
    "imagenet": ["train", "stage=imagenet", "trainer.max_epochs=4"],
    "coco": ["train", "stage=coco", "stage.parent=null", "objective=ema", "objective.itc.queue_size=24", *PARTS],
    "vlr": ["train", "stage=vlr", "stage.parent=null", *PARTS, *EVERYTHING, "trainer.val_check_interval=3"],
    "chain": ["pipeline", "stage=vlr", *PARTS, *EVERYTHING, "suite=scenes"],
}
FINISHED, AGAIN = "finished stages", "killed again before it trained"
LENGTH = {"coco": ["trainer.max_epochs=4"], "vlr": ["trainer.max_epochs=2"], "chain": ["trainer.max_epochs=2"]}


@dataclass(frozen=True)
class Blow:
    """When a process sends itself a signal: `delay` seconds after its `count`-th `event`: start, step, validation (its batches) or end of a
    stage's training."""

    event: str
    count: int = 1
    delay: float = 0.0
    number: int = signal.SIGKILL

    @classmethod
    def drawn(cls, draw: random.Random) -> "Blow":
        event = draw.choices(("step", "start", "end"), weights=(8, 1, 1))[0]
        longest = {"step": 0.5, "start": 4.0, "end": draw.choice((0.1, 3.0))}[event]
        return cls(event, draw.randint(1, 5) if event == "step" else 1, draw.uniform(0, longest))

    def fall(self) -> None:
        if self.delay == 0:
            os.kill(os.getpid(), self.number)
        else:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()


def command(name: str) -> list[str]:
    """The command line of a run, without its places."""
    (verb, *rest) = RUNS[name]
    chain = [f"chain.{stage}={json.dumps(EVERY_STEP)}" for stage in ("imagenet", "coco")] if name == "chain" else []
    return [verb, SMALL[0], *rest, *SMALL[1:], *EVERY_STEP, *LENGTH.get(name, []), *chain]


def _process(arguments: list[str], home: str, logs: str, blow: Blow | None, room: int | None) -> None:
    """A forked process that runs the command, writes down where it stands, and sends itself the signal."""
    import lightning as L
    import torch

    from crossvit import cli
    from crossvit.stages import training

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(logs, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment(Path(home)))
    os.chdir(home)
    torch.set_num_threads(1)
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    seen: dict[str, int] = {}

    def note(event: str, **more) -> None:
        with Path(logs, "events").open("a") as file:
            file.write(json.dumps({"event": event, **more}) + "\n")
        seen[event] = seen.get(event, 0) + 1
        if blow and (event, seen[event]) == (blow.event, blow.count):
            blow.fall()

    class Witness(L.Callback):
        def __init__(self, stage: str) -> None:
            self.stage = stage

        def on_train_start(self, trainer, module) -> None:
            file = Path(trainer.ckpt_path).name if trainer.ckpt_path else None
            note("from", stage=self.stage, step=trainer.global_step, file=file)

        def on_train_batch_start(self, trainer, module, batch, index) -> None:
            note("step", stage=self.stage, step=trainer.global_step)

        def on_validation_batch_start(self, trainer, *args) -> None:
            note("validation", stage=self.stage, step=trainer.global_step)

        def on_train_end(self, trainer, module) -> None:
            note("end", stage=self.stage, step=trainer.global_step)

    build = training.build_trainer

    def witnessed(cfg, directory):
        trainer = build(cfg, directory)
        trainer.callbacks.insert(0, Witness(str(cfg.stage.name)))
        return trainer

    training.build_trainer = witnessed
    note("start")
    sys.argv = ["crossvit", *arguments]
    code = cli.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a blow that has not fallen yet falls no more


def run(
    arguments: list[str], home: Path, logs: Path, blow: Blow | None = None, room: int | None = None
) -> tuple[Done, list[dict]]:
    """The command in a process of its own: how it ended, and where it stood. room: bytes of the longest file that it may write."""
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    started = time.monotonic()
    process = forkserver.Process(target=_process, args=(arguments, str(home), str(logs), blow, room))
    process.start()
    process.join()
    out, err = ((logs / name).read_text(errors="replace") for name in ("out", "err"))
    lines = (logs / "events").read_text().splitlines() if (logs / "events").is_file() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return Done(process.exitcode, out, err, time.monotonic() - started), events


def result(root: Path) -> dict:
    """Everything of a run's stages that has to be the same: bytes of the weights, figures, curve, log."""
    found = {}
    for stage in sorted(path for path in root.glob("runs/stages/[!.]*") if path.is_dir()):
        record = json.loads((stage / "provenance.json").read_text())
        (log,) = root.glob(f"runs/smoke/metrics/{record['stage']}/metrics.csv")
        with log.open(newline="") as file:
            rows = [dict(sorted(row.items())) for row in csv.DictReader(file)]
        found[stage.name] = {
            "weights": (stage / "weights.safetensors").read_bytes(),
            "log": rows,
            **{key: record[key] for key in ("stage", "steps", "metrics", "validation", "compute")},
        }
    for table in root.glob("runs/*/table.json"):
        found["table"] = json.loads(table.read_text())
    return found


def differences(one: dict, other: dict) -> list[str]:
    """The names of what is not the same."""
    names = []
    for place in sorted(one.keys() | other.keys()):
        if place not in one or place not in other:
            names.append(f"{place} is missing")
        elif place == "table":
            names += ["table"] if one[place] != other[place] else []
        else:
            names += [f"{one[place]['stage']}: {key}" for key in one[place] if one[place][key] != other[place][key]]
    return names


def campaign(name: str, kills: int, seed: int, root: Path, data: Path) -> Iterator[dict]:
    """One run: a line for each kill, and a last one."""
    places = {kind: [f"paths.root={root / kind}", f"paths.data={data}"] for kind in ("whole", "killed")}
    arguments = command(name)
    for kind in places:
        (root / kind).mkdir(parents=True)
    done, _ = run([*arguments, *places["whole"]], root / "whole", root / "logs")
    assert done.code == 0, done.err
    draw, fell, pending = random.Random(f"{name} {seed}"), 0, None
    again = 0  # a run that ends before its kills are spent is begun anew with the same moments drawn on
    while True:
        blow = Blow.drawn(draw) if fell < kills else None
        done, events = run([*arguments, *places["killed"]], root / "killed", root / "logs", blow)
        if pending is not None:
            start = next((event for event in events if event["event"] == "from"), None)
            if start is not None:
                pending["went_on_from"] = {key: start[key] for key in ("stage", "step", "file")}
            else:
                pending["went_on_from"] = FINISHED if done.code == 0 else AGAIN
            yield pending
            pending = None
        if done.code == -signal.SIGKILL:
            fell += 1
            last = events[-1] if events else {}
            pending = {
                "run": name,
                "kill": fell,
                "at": f"{blow.event} + {blow.delay:.3f} s",
                "event": last.get("event"),
            }
            pending |= {"stage": last.get("stage"), "step": last.get("step")}
            continue
        assert done.code == 0, done.err
        assert "Traceback" not in done.err, done.err
        found = differences(result(root / "whole"), result(root / "killed"))
        left = [str(path.relative_to(root)) for path in (root / "killed").glob("runs/stages/.partial-*")]
        yield {"run": name, "ended": again, "kills": fell, "equal": not found and not left, "differs": found + left}
        if fell >= kills:
            return
        again += 1
        shutil.rmtree(root / "killed" / "runs")


def table(path: Path) -> str:
    """Markdown: of each run the kills, where the next process began, and how often the end was the same."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    lines = [
        "| run | kills | went on in mid-training | began at step 0 | stages were finished | killed again first | ends equal |"
    ]
    lines.append("| --- " * 7 + "|")
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        places, ends = (
            [row["went_on_from"] for row in own if "kill" in row],
            [row["equal"] for row in own if "ended" in row],
        )
        begun = [place["step"] > 0 for place in places if isinstance(place, dict)]
        others = [sum(place == text for place in places) for text in (FINISHED, AGAIN)]
        counts = [len(places), sum(begun), len(begun) - sum(begun), *others, f"{sum(ends)} of {len(ends)}"]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="over all runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    parser.add_argument("--root", type=Path, help="where the runs work; a temporary folder otherwise")
    parser.add_argument("--table", type=Path, help="only print what this file of an earlier call says")
    asked = parser.parse_args()
    if asked.table is not None:
        print(table(asked.table))
        return 0
    from crossvit.stages.provenance import environment as versions

    about = versions() | {"command": f"python -m tests.kills --kills {asked.kills} --seed {asked.seed}"}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, asked.out.open("w") as out:
        root = (asked.root or Path(temporary)).resolve()
        equal = True
        out.write(
            json.dumps(about | {"runs": {name: shlex.join(["crossvit", *command(name)]) for name in RUNS}}) + "\n"
        )
        for number, name in enumerate(asked.runs):
            share = asked.kills * (number + 1) // len(asked.runs) - asked.kills * number // len(asked.runs)
            shutil.rmtree(root / name, ignore_errors=True)
            for line in campaign(name, share, asked.seed, root / name, root / "data"):
                equal = equal and line.get("equal", True)
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(json.dumps(line))
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())

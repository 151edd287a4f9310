"""`crossvit data verify`: what a dataset holds, and what is wrong with it."""

import json
import sys

from omegaconf import DictConfig, OmegaConf

from crossvit.commands.run import run_directory
from crossvit.data.checks.check import check
from crossvit.data.checks.words import lines
from crossvit.data.reading.bad_samples import BadSamples
from crossvit.data.tokenizer import WordTokenizer
from crossvit.errors import FaultsFound, UserError
from crossvit.report.atomic import write_atomically
from crossvit.stages.build import build_data
from crossvit.stages.corpus import prepare_corpus


def run(cfg: DictConfig) -> None:
    """Prints the report and leaves it as report.json in the run directory, damaged pictures in bad_samples.jsonl.

    Raises FaultsFound where there is a fault.
    """
    from rich.console import Console
    from rich.progress import Progress

    prepare_corpus(cfg, cfg.data)
    directory = run_directory()
    (directory / BadSamples.FILE_NAME).unlink(missing_ok=True)  # of an earlier check
    data = build_data(cfg.data, WordTokenizer(), max_bad_fraction=1.0, bad_samples_dir=directory)
    console = Console(file=sys.stderr)  # stdout holds the report alone
    with Progress(transient=True, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def progress(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(split, total=total)
            bar.update(tasks[split], completed=done)

        report = check(data, _splits(cfg), cfg.decode, cfg.workers, list(cfg.allow), progress)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_atomically(directory / "report.json", text.encode("utf-8", "surrogateescape"))
    print(text if cfg.json else "\n".join(lines(report)))
    if report["faults"]:
        raise FaultsFound(f"{report['faults']} faults; all of it in {directory / 'report.json'}")


def _splits(cfg: DictConfig) -> list[str]:
    """Those asked for, or those that the dataset's config names."""
    asked = OmegaConf.to_container(cfg.splits) if OmegaConf.is_config(cfg.splits) else cfg.splits
    if asked is None:
        asked = [cfg.data[key] for key in ("train_split", "val_split", "test_split")]
    named = [asked] if isinstance(asked, str) else asked
    found = list(dict.fromkeys(split for split in named if split is not None))
    if not found:
        raise UserError("splits=[]: name the splits to check, or null for those of the dataset's config")
    return found
